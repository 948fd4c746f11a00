// Reserved slots of the mapped segment that a client fills part by part, in place or from its own memory. Its only exits are seal() and abort().
//
// Rules
// - Thread-safe; one call at a time. Parts are published in order.
// - After seal() or abort() nothing of it writes into the slots any more; what Python does with arrays it was given is Python's.
// - While it lives, and while arrays over its slots live, the channel stays open: the node keeps the slots from others.
#pragma once
#include <memory>
#include <mutex>

#include "operation.hpp"

namespace kvstore::door {

class Reservation {
 public:
  // Asks for the slots. result() says what came of it.
  Reservation(std::shared_ptr<Session> session, ReserveArguments arguments, Nanos deadline);
  ~Reservation();  // aborts what is not sealed

  const Result& result() const noexcept { return asked_; }
  const std::vector<std::uint32_t>& granted() const noexcept { return granted_; }  // indices of keys
  std::uint64_t block_bytes() const noexcept { return block_bytes_; }
  // Offset of keys[index]'s slot in the segment. Throws std::invalid_argument: not granted, or ended.
  std::uint64_t offset_of(std::uint32_t index) const;
  const std::shared_ptr<Session>& session() const noexcept { return session_; }

  // Copies one part of all granted blocks from the caller's memory: k pieces each.
  Result write(std::uint32_t part, const Scattered& from);
  Result publish(std::uint32_t part, Nanos deadline);
  Result seal(Nanos deadline);
  void abort();

 private:
  Result refuse(Status status, const char* field, const char* reason) const;
  std::uint64_t checksum(std::size_t slot, std::uint32_t part) const;

  std::shared_ptr<Session> session_;
  Parts parts_;
  std::vector<std::uint64_t> part_offsets_;
  std::uint64_t block_bytes_ = 0;
  Result asked_;
  Nanos began_ = 0;
  std::vector<std::uint32_t> granted_;
  std::vector<WireTicket> tickets_;
  std::vector<std::uint64_t> offsets_;
  mutable std::mutex mutex_;
  std::vector<std::uint64_t> checksums_;  // [slot * parts + part], of those written by write()
  std::vector<bool> written_;             // parts
  std::uint32_t published_ = 0;
  bool ended_ = false;
};

}  // namespace kvstore::door
