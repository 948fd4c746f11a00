#include "served_grants.hpp"

#include <algorithm>
#include <stdexcept>

namespace kvstore::tcp {

namespace {

// In a time that does not tell where they differ.
bool same(const std::array<std::uint8_t, kProofBytes>& a, const std::array<std::uint8_t, kProofBytes>& b) noexcept {
  unsigned different = 0;
  for (std::size_t i = 0; i < kProofBytes; ++i) different |= static_cast<unsigned>(a[i] ^ b[i]);
  return different == 0;
}

}  // namespace

Reason Served::enter(std::int64_t now_ns) noexcept {
  touching.fetch_add(1);  // before the look at `ended`
  Reason reason = Reason::kNone;
  if (ended.load()) {
    reason = Reason::kRevoked;
  } else if (now_ns >= expiry_ns) {
    reason = Reason::kExpired;
  }
  if (reason != Reason::kNone) touching.fetch_sub(1);
  return reason;
}

bool Served::leave() noexcept { return touching.fetch_sub(1) == 1 && ended.load(); }

void ServedGrants::issue(std::shared_ptr<Served> grant) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<Served>& slot = slots_.at(grant->slot);
  if (slot && slot->generation >= grant->generation) throw std::invalid_argument("grant: a slot's generation only grows");
  slot = std::move(grant);
}

void ServedGrants::end(std::uint32_t slot) {
  const std::lock_guard lock(mutex_);
  if (slots_.at(slot)) slots_[slot]->ended.store(true);
}

bool ServedGrants::quiet(std::uint32_t slot) const {
  const std::lock_guard lock(mutex_);
  return !slots_.at(slot) || slots_[slot]->touching.load() == 0;
}

std::shared_ptr<Served> ServedGrants::open(const Access& access, std::span<const WireRow> rows, bool writing, std::int64_t now_ns,
                                           Reason& why) const {
  std::shared_ptr<Served> grant;
  {
    const std::lock_guard lock(mutex_);
    if (access.slot < slots_.size()) grant = slots_[access.slot];
  }
  why = Reason::kRevoked;
  if (!grant || grant->generation != access.generation || !same(grant->proof, access.proof) || grant->ended.load()) return nullptr;
  why = Reason::kExpired;
  if (now_ns >= grant->expiry_ns) return nullptr;
  why = Reason::kNotAllowed;
  if (!rows.empty() && !(writing ? grant->writable : grant->readable)) return nullptr;
  why = Reason::kOutOfBounds;
  for (const WireRow& row : rows)
    if (!transfer::covered(grant->ranges, row.offset, row.length)) return nullptr;
  why = Reason::kNone;
  return grant;
}

}  // namespace kvstore::tcp
