// Whatever a node answers: a client's operations end with a status, and copy nothing from outside the segment. The first byte
// chooses the operation; the rest are answers, each behind its verb, status, flags and a two-byte length.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tests/door_rig.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

constexpr std::uint64_t kSegment = 64 << 10;

std::unique_ptr<Operation> make(std::uint8_t which, Bytes& memory) {
  static const auto parts = std::make_shared<const std::vector<std::uint32_t>>(std::vector<std::uint32_t>{4096, 100});
  HoldArguments hold;
  hold.keys = chain_of(1, 3);
  ReserveArguments reserve;
  reserve.keys = hold.keys;
  switch (which % 6) {
    case 0: return std::make_unique<FetchOperation>(hold, parts, memory.whole());
    case 1: return std::make_unique<PutOperation>(reserve, parts, memory.whole());
    case 2: return std::make_unique<ViewOperation>(hold, parts);
    case 3: return std::make_unique<LookupOperation>(0, hold.keys, std::span<const Need>());
    case 4: return std::make_unique<CallOperation>(1, std::span<const std::uint8_t>());
    default: return std::make_unique<HoldOperation>(hold);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Bytes memory(3, 4196);
  static const int descriptor = [] {
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (ftruncate(fd, kSegment) != 0) std::abort();
    return fd;
  }();
  static MappedSegment segment(descriptor, kSegment, transfer::Access::kReadWrite);
  if (size < 1) return 0;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
  {
    Channel channel(std::make_unique<Wire>(pair[0]));
    SessionInfo info;
    info.frame_bytes_max = 1 << 16;
    Link link{channel, info, (data[0] & 0x80) != 0 ? &segment : nullptr, (data[0] & 0x40) == 0, monotonic_now() + 1'000'000};
    const auto operation = make(data[0], memory);
    ++data;
    --size;
    FrameWriter request;
    auto next = operation->step(link, nullptr, request);
    while (next != Operation::Next::kDone && size >= 5) {
      Answer answer;
      answer.header.verb = static_cast<Verb>(data[0]);
      answer.header.status = static_cast<Status>(data[1] % 5);
      answer.header.flags = data[2];
      const std::size_t length = std::min<std::size_t>(size - 5, data[3] | data[4] << 8);
      answer.body.assign(data + 5, data + 5 + length);
      data += 5 + length;
      size -= 5 + length;
      if (answer.header.status != Status::kOk) {
        parse_error(answer.body, operation->result.field, operation->result.reason, operation->result.limit);
        operation->refused(link);
        break;
      }
      request.bytes.clear();
      next = operation->step(link, &answer, request);
      char sink[4096];
      while (recv(pair[1], sink, sizeof sink, MSG_DONTWAIT) > 0) {
      }
    }
    if (operation->result.blocks > 3 && operation->result.tiers.size() != operation->result.blocks) std::abort();
  }
  close(pair[1]);
  return 0;
}
