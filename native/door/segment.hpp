// A client's mapping of its node's payload segment: once read-only, for gets and views, once writable, for what it publishes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvstore::door {

class Segment {
 public:
  // Takes the descriptor. Page tables are filled at once for segments up to `populate_max`; larger ones fill as they are used.
  Segment(int fd, std::uint64_t bytes, std::uint64_t populate_max);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  std::uint64_t bytes() const noexcept { return bytes_; }
  bool contains(std::uint64_t offset, std::uint64_t count) const noexcept { return count <= bytes_ && offset <= bytes_ - count; }
  const std::byte* readable(std::uint64_t offset) const noexcept { return readable_ + offset; }
  std::byte* writable(std::uint64_t offset) const noexcept { return writable_ + offset; }

 private:
  std::uint64_t bytes_;
  std::byte* readable_ = nullptr;
  std::byte* writable_ = nullptr;
};

}  // namespace kvstore::door
