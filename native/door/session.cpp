// Connecting, closing, and calls that run in the caller's thread. Rules: session.hpp.
#include "session.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/clock.hpp"
#include "connecting.hpp"
#include "session_impl.hpp"

namespace kvstore::door {
namespace {

constexpr std::uint64_t kPopulateMax = 8ull << 30;  // larger segments fill their page tables as they are used
constexpr Nanos kMilli = 1'000'000;

}  // namespace

void take_error(const Answer& answer, Result& result) {
  result.status = answer.header.status;
  if (result.status > Status::kDenied || !parse_error(answer.body, result.field, result.reason, result.limit)) {
    result.status = Status::kUnavailable;
    result.reason = "the node's answer does not parse";
  }
}

bool too_large(const FrameWriter& request, const SessionInfo& info, Result& result) {
  if (request.bytes.size() - sizeof(FrameHeader) <= info.frame_bytes_max) return false;
  result.status = Status::kRejected;
  result.field = "frame_bytes_max";
  result.reason = "the request is too large: ask for fewer blocks at once";
  result.limit = info.frame_bytes_max;
  return true;
}

Session::Impl::Impl(const SessionConfig& config_) : config(config_), process(getpid()) {
  if (config.workers < 1 || config.workers > 16) throw std::invalid_argument("workers: 1 to 16");
  if (config.token.size() > 0xffff) throw std::invalid_argument("token: at most 65535 bytes");
  completion_event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (completion_event < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  try {
    connect();
  } catch (...) {
    ::close(completion_event);
    throw;
  }
}

void Session::Impl::connect() {
  Welcome welcome = say_hello(config, monotonic_now() + static_cast<Nanos>(config.connect_ms) * kMilli);
  info = welcome.info;
  if (info.trusted && welcome.segment.fd < 0) throw std::invalid_argument("hello: the node passed no segment");
  channel = std::make_shared<Channel>(std::move(welcome.wire));
  channel->set_frame_bytes_max(std::max<std::uint32_t>(info.frame_bytes_max, 1u << 20));
  soon = std::make_unique<Soon>(channel);
  if (!info.trusted) return;
  const auto populate = info.payload_bytes <= kPopulateMax ? transfer::Populate::kAtOnce : transfer::Populate::kAsUsed;
  segment = std::make_shared<MappedSegment>(welcome.segment.fd, info.payload_bytes, transfer::Access::kReadWrite, populate);
}

Session::Impl::~Impl() {
  close();
  ::close(completion_event);
}

bool Session::Impl::enter() {
  std::lock_guard lock(life);
  if (is_closed || getpid() != process) return false;
  active += 1;
  return true;
}

void Session::Impl::leave() {
  std::lock_guard lock(life);
  active -= 1;
  if (active == 0) idle.notify_all();
}

void Session::Impl::close() {
  if (getpid() != process) {  // after fork: the parent's threads and locks are not here
    for (std::thread& thread : threads) thread.detach();
    threads.clear();
    static_cast<void>(soon.release());  // its condition variable would be waited for: its thread sleeps on it, elsewhere
    return;
  }
  std::lock_guard one(closing);
  {
    std::lock_guard lock(life);
    if (is_closed.exchange(true)) return;
  }
  channel->flush(monotonic_now() + Channel::kSlice);
  channel->break_off();
  {
    std::unique_lock lock(life);
    idle.wait(lock, [this] { return active == 0; });
  }
  soon->stop();
  stop_threads();
}

Parts Session::Impl::parts_of(NsId ns, std::uint16_t shard) {
  std::lock_guard lock(layouts_mutex);
  const auto found = layouts.find(ns);
  if (found == layouts.end()) throw std::invalid_argument("ns: describe() it first");
  if (shard >= found->second.size()) throw std::invalid_argument("shard: the namespace has no such shard");
  return found->second[shard];
}

Session::Session(const SessionConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Session::~Session() = default;

const SessionInfo& Session::info() const noexcept { return impl_->info; }
bool Session::closed() const noexcept { return impl_->is_closed || impl_->channel->broken(); }
void Session::close() { impl_->close(); }
std::shared_ptr<MappedSegment> Session::segment() const { return impl_->segment; }
std::shared_ptr<Channel> Session::channel() const { return impl_->channel; }
Parts Session::parts_of(NsId ns, std::uint16_t shard) { return impl_->parts_of(ns, shard); }
bool Session::enter() { return impl_->enter(); }
void Session::leave() { impl_->leave(); }

void Session::describe(NsId ns, std::vector<std::vector<std::uint32_t>> shards) {
  std::vector<Parts> described;
  for (auto& parts : shards) {
    if (parts.empty() || parts.size() > kPartsMax) throw std::invalid_argument("shards: 1 to 256 parts each");
    for (const std::uint32_t bytes : parts)
      if (bytes == 0) throw std::invalid_argument("shards: a part has at least one byte");
    described.push_back(std::make_shared<const std::vector<std::uint32_t>>(std::move(parts)));
  }
  std::lock_guard lock(impl_->layouts_mutex);
  impl_->layouts[ns] = std::move(described);
}

Result Session::run(Operation& operation, Nanos deadline) {
  if (!impl_->enter()) {
    operation.result.status = Status::kUnavailable;
    operation.result.reason = "the session is closed";
    return std::move(operation.result);
  }
  Link link = impl_->link(deadline);
  Channel& channel = *impl_->channel;
  FrameWriter request;
  Operation::Next next = operation.step(link, nullptr, request);
  while (next != Operation::Next::kDone) {
    if (too_large(request, impl_->info, operation.result)) {
      operation.refused(link);
      break;
    }
    const std::uint64_t id = channel.open();
    std::memcpy(request.bytes.data() + offsetof(FrameHeader, request), &id, sizeof id);
    Status status = channel.send(request.bytes, deadline);
    Answer answer;
    if (status == Status::kOk) status = channel.wait(id, deadline, answer);
    if (status == Status::kOk && answer.header.status == Status::kOk) {
      request.bytes.clear();
      next = operation.step(link, &answer, request);
      continue;
    }
    channel.abandon(id);
    if (status == Status::kOk) {
      take_error(answer, operation.result);
    } else {
      operation.result.status = status;
      operation.result.reason = status == Status::kLate ? "the deadline passed" : "the node is gone";
    }
    operation.refused(link);
    break;
  }
  if (channel.waiting()) impl_->soon->ask();  // what was held is given back although no call follows
  impl_->leave();
  return std::move(operation.result);
}

bool Session::tell(Verb verb, std::span<const std::uint8_t> body, Nanos deadline) {
  if (!impl_->enter()) return false;
  impl_->channel->later(verb, body);
  const bool sent = impl_->channel->flush(deadline) == Status::kOk;
  impl_->leave();
  return sent;
}

bool Session::tell_soon(Verb verb, std::span<const std::uint8_t> body) {
  if (!impl_->enter()) return false;
  impl_->channel->later(verb, body);
  impl_->soon->ask();
  impl_->leave();
  return true;
}

bool Session::flush(Nanos deadline) {
  if (!impl_->enter()) return false;
  const bool sent = impl_->channel->flush(deadline) == Status::kOk;
  impl_->leave();
  return sent;
}

}  // namespace kvstore::door
