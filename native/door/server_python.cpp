// What Python does with a door, from its own threads: it allows namespaces, takes rare verbs and answers them. Rules: server.hpp.
#include <unistd.h>

#include <stdexcept>

#include "server_impl.hpp"

namespace kvstore::door {

void Door::set_bearers(std::vector<TokenDigest> tokens, std::vector<CertificateName> certificates) {
  {
    std::lock_guard lock(impl_->shared);
    impl_->tokens = std::move(tokens);
    impl_->certificates.clear();
    for (CertificateName& one : certificates) impl_->certificates.emplace(std::move(one.name), one.token);
  }
  impl_->inbox->push(Inbox::Judge{});  // after it, so that who has said HELLO with an old one is seen
}

void Door::renew_tls(std::shared_ptr<const tcp::TlsContext> tls) {
  if (tls && !tls->can_accept()) throw std::invalid_argument("tls: a door shows a certificate");
  std::lock_guard lock(impl_->shared);
  impl_->tls = std::move(tls);
}

bool Door::allow(OwnerId owner, NsId ns) {
  {
    std::lock_guard lock(impl_->inbox->mutex);
    if (!impl_->inbox->owners.contains(owner)) return false;
  }
  return impl_->inbox->push(Inbox::Allow{owner, ns});
}

void Door::disallow(NsId ns) { impl_->inbox->push(Inbox::Disallow{ns}); }
void Door::trust_until(Nanos until) { impl_->trusted_until.store(until, std::memory_order_release); }
void Door::answer_locates(OwnerId owner, std::uint32_t method, std::shared_ptr<ClaimsDesk> claims) {
  impl_->inbox->push(Inbox::Locates{owner, method, std::move(claims)});
}
void Door::set_draining(bool draining) { impl_->draining.store(draining, std::memory_order_relaxed); }

int Door::request_fd() const { return impl_->request_event; }

std::vector<Request> Door::take_requests(std::size_t max) {
  std::lock_guard lock(impl_->shared);
  std::vector<Request> taken;
  while (!impl_->requests.empty() && taken.size() < max) {
    taken.push_back(std::move(impl_->requests.front()));
    impl_->requests.pop_front();
  }
  if (impl_->requests.empty()) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto drained = ::read(impl_->request_event, &count, sizeof count);
  }
  return taken;
}

bool Door::answer(OwnerId owner, std::uint64_t request, std::span<const std::uint8_t> body) {
  if (body.size() > impl_->config.frame_bytes_max)
    return answer_error(owner, request, Status::kRejected, "frame_bytes_max", "the answer is too large", impl_->config.frame_bytes_max);
  FrameWriter frame;
  const std::size_t start = frame.begin(Verb::kCall, kAnswer, request);
  frame.append(body.data(), body.size());
  frame.finish(start);
  {
    std::lock_guard lock(impl_->inbox->mutex);
    if (!impl_->inbox->owners.contains(owner)) return false;
  }
  return impl_->inbox->push(Inbox::Frame{owner, std::move(frame.bytes), true});
}

bool Door::answer_error(OwnerId owner, std::uint64_t request, Status status, const std::string& field,
                        const std::string& reason, std::uint64_t limit) {
  FrameWriter frame;
  frame.error(Verb::kCall, 0, request, status, field, reason, limit);
  {
    std::lock_guard lock(impl_->inbox->mutex);
    if (!impl_->inbox->owners.contains(owner)) return false;
  }
  return impl_->inbox->push(Inbox::Frame{owner, std::move(frame.bytes), true});
}

void Door::answered(OwnerId owner) { impl_->inbox->push(Inbox::Frame{owner, {}, true}); }

DoorStats Door::stats() const {
  std::lock_guard lock(impl_->shared);
  return impl_->counts;
}

}  // namespace kvstore::door
