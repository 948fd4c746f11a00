// Chains and extras in C++: the shape of the message, and what extras are refused. Vectors are checked from Python (tests/golden).
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/keys.hpp"
#include "check.hpp"

using namespace kvstore;

namespace {

void append_u32(std::string& to, std::uint32_t value) { to.append(reinterpret_cast<const char*>(&value), 4); }

void keys_hash_what_the_page_says() {
  std::vector<std::uint32_t> tokens(37);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint32_t>(i * 1'000'003);
  Digest parent{};
  parent[5] = 7;
  const std::uint8_t more[3] = {1, 2, 3};
  const BlockExtras extras[1] = {{1, more}};
  std::vector<Digest> keys(2);
  chain_keys(parent, tokens, 16, extras, keys);
  for (std::size_t block = 0; block < 2; ++block) {
    std::string message = "kvk1";
    message.append(reinterpret_cast<const char*>(parent.data()), 32);
    append_u32(message, 16);
    message.append(reinterpret_cast<const char*>(tokens.data() + 16 * block), 64);
    append_u32(message, block == 1 ? 3 : 0);
    if (block == 1) message.append("\1\2\3");
    parent = sha256(message.data(), message.size());
    CHECK(parent == keys[block]);
  }
}

void extras_touch_the_blocks_they_cover() {
  const std::uint8_t name[2] = {'a', 'b'};
  const std::vector<Extra> extras = {{ExtraKind::kMultimodal, 20, 40, name}, {ExtraKind::kMultimodal, 70, 71, name}};
  const EncodedExtras encoded(extras, 16, 8);
  CHECK(encoded.blocks().size() == 3);
  const std::size_t blocks[3] = {1, 2, 4};
  for (std::size_t i = 0; i < 3 && i < encoded.blocks().size(); ++i) {
    CHECK(encoded.blocks()[i].block == blocks[i]);
    CHECK(encoded.blocks()[i].bytes.size() == 21 + 2);
  }
  CHECK(EncodedExtras(extras, 16, 0).blocks().empty());
  CHECK(EncodedExtras({}, 16, 8).blocks().empty());
}

template <typename Make>
bool refused(Make make) {
  try {
    make();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void wrong_extras_are_refused() {
  const std::uint8_t byte[1] = {1};
  const auto one = [&](Extra extra) { return refused([&] { EncodedExtras({&extra, 1}, 16, 4); }); };
  CHECK(one({ExtraKind::kLora, 5, 5, byte}));
  CHECK(one({ExtraKind::kLora, 5, 4, byte}));
  CHECK(one({ExtraKind::kLora, 5, 6, {}}));
  CHECK(one({static_cast<ExtraKind>(0), 5, 6, byte}));
  CHECK(one({static_cast<ExtraKind>(5), 5, 6, byte}));
  CHECK(one({ExtraKind::kLora, INT64_MIN, 6, byte}));
  CHECK(one({ExtraKind::kLora, 0, INT64_MAX, byte}));
  CHECK(!one({ExtraKind::kLora, -(INT64_C(1) << 62), INT64_C(1) << 62, byte}));
  const std::vector<Extra> many(kExtrasMax + 1, {ExtraKind::kLora, 0, 1, byte});
  CHECK(refused([&] { EncodedExtras(many, 16, 4); }));
}

}  // namespace

int main() {
  keys_hash_what_the_page_says();
  extras_touch_the_blocks_they_cover();
  wrong_extras_are_refused();
  return test::finish();
}
