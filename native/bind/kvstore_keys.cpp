// Digests and chains of keys for Python. kvstore/identity.py is the surface that people use.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstring>
#include <limits>
#include <stdexcept>

#include "buffers.hpp"

namespace kvstore::bind {
namespace {

constexpr std::size_t kShortTokens = 1024;   // about 6 us of hashing
constexpr std::size_t kShortBytes = 16'384;  // likewise

// A one-dimensional, contiguous array of native integers.
class TokenBuffer {
 public:
  explicit TokenBuffer(nb::handle object) {
    if (PyObject_CheckBuffer(object.ptr()) == 0) throw nb::type_error("tokens must be an array of int32, uint32 or int64");
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
      PyErr_Clear();
      throw nb::value_error("tokens must be contiguous");
    }
    format_ = view_.format == nullptr ? "B" : view_.format;
    if (format_[0] == '<' || format_[0] == '=' || format_[0] == '@') ++format_;
    const bool known = std::strlen(format_) == 1 && std::strchr("iIlLqQ", format_[0]) != nullptr;
    if (!known || view_.ndim != 1) {
      const std::string found = std::to_string(view_.ndim) + " dimensions of '" + (view_.format ? view_.format : "B") + "'";
      PyBuffer_Release(&view_);
      throw nb::type_error(("tokens must be one dimension of int32, uint32 or int64, not " + found).c_str());
    }
  }
  ~TokenBuffer() { PyBuffer_Release(&view_); }
  TokenBuffer(const TokenBuffer&) = delete;
  TokenBuffer& operator=(const TokenBuffer&) = delete;

  std::size_t size() const noexcept { return static_cast<std::size_t>(view_.shape[0]); }
  // The tokens as uint32, in place where they are that already. The span lives as long as `room` and this.
  std::span<const std::uint32_t> words(std::vector<std::uint32_t>& room) const {
    const bool is_signed = std::strchr("ilq", format_[0]) != nullptr;
    if (view_.itemsize == 4 && !is_signed) return {static_cast<const std::uint32_t*>(view_.buf), size()};
    if (view_.itemsize == 4) return checked(static_cast<const std::int32_t*>(view_.buf), room);
    if (is_signed) return checked(static_cast<const std::int64_t*>(view_.buf), room);
    return checked(static_cast<const std::uint64_t*>(view_.buf), room);
  }

 private:
  template <typename Integer>
  std::span<const std::uint32_t> checked(const Integer* tokens, std::vector<std::uint32_t>& room) const {
    room.resize(size());
    bool all_good = true;
    for (std::size_t i = 0; i < size(); ++i) {
      room[i] = static_cast<std::uint32_t>(tokens[i]);
      all_good &= std::in_range<std::uint32_t>(tokens[i]);
    }
    for (std::size_t i = 0; !all_good && i < size(); ++i) {
      if (std::in_range<std::uint32_t>(tokens[i])) continue;
      throw std::invalid_argument("tokens[" + std::to_string(i) + "] is " + std::to_string(tokens[i]) +
                                  "; a token id is 0 to 4294967295");
    }
    return room;
  }

  Py_buffer view_{};
  const char* format_ = nullptr;
};

std::uint32_t checked_block_tokens(std::int64_t block_tokens) {
  if (block_tokens < 1 || block_tokens > kBlockTokensMax) {
    throw nb::value_error(("block_tokens must be 1 to " + std::to_string(kBlockTokensMax) + ", not " +
                           std::to_string(block_tokens)).c_str());
  }
  return static_cast<std::uint32_t>(block_tokens);
}

// The rows of (kind, first token, end token, value) as the core takes them.
struct TypedExtras {
  std::vector<nb::bytes> kept;  // the values lie here
  std::vector<Extra> rows;
};
TypedExtras extras_of(Objects rows) {
  TypedExtras extras;
  for (nb::handle item : rows) {
    std::tuple<std::uint8_t, std::int64_t, std::int64_t, nb::bytes> row;
    if (!nb::try_cast(item, row)) {
      const std::string name = "extras[" + std::to_string(extras.rows.size()) + "]";
      throw nb::value_error((name + " must be a kind, two 64-bit positions and bytes").c_str());
    }
    auto& [kind, first, end, value] = row;
    extras.rows.push_back({static_cast<ExtraKind>(kind), first, end,
                           {static_cast<const std::uint8_t*>(value.data()), value.size()}});
    extras.kept.push_back(std::move(value));
  }
  return extras;
}

KeyArray chain(nb::handle parent, nb::handle tokens, std::int64_t block_tokens, Objects extras) {
  const Digest seed = digest_of(parent, "seed");
  const std::uint32_t size = checked_block_tokens(block_tokens);
  const TokenBuffer buffer(tokens);
  const TypedExtras typed = extras_of(extras);
  std::vector<Digest> keys(buffer.size() / size);
  {
    const MaybeRelease gil(buffer.size() > kShortTokens);
    std::vector<std::uint32_t> room;
    const auto words = buffer.words(room);
    const EncodedExtras encoded(typed.rows, size, keys.size());
    chain_keys(seed, words, size, encoded.blocks(), keys);
  }
  return to_key_array(std::move(keys));
}

// For a caller that has encoded its extras itself: rows of (block, bytes), ascending by block.
KeyArray chain_encoded(nb::handle parent, nb::handle tokens, std::int64_t block_tokens, Objects extras) {
  const Digest seed = digest_of(parent, "seed");
  const std::uint32_t size = checked_block_tokens(block_tokens);
  const TokenBuffer buffer(tokens);
  std::vector<nb::bytes> kept;
  std::vector<BlockExtras> listed;
  for (nb::handle item : extras) {
    std::tuple<std::size_t, nb::bytes> row;
    if (!nb::try_cast(item, row)) throw nb::value_error("extras must be rows of a block's number and bytes");
    auto& [block, value] = row;
    if (!listed.empty() && block <= listed.back().block) throw nb::value_error("extras must ascend strictly by block");
    if (value.size() > kExtrasBytesMax) {
      throw nb::value_error(("extras of block " + std::to_string(block) + " are " + std::to_string(value.size()) +
                             " bytes; extras_bytes_max is " + std::to_string(kExtrasBytesMax)).c_str());
    }
    listed.push_back({block, {static_cast<const std::uint8_t*>(value.data()), value.size()}});
    kept.push_back(std::move(value));
  }
  std::vector<Digest> keys(buffer.size() / size);
  {
    const MaybeRelease gil(buffer.size() > kShortTokens);
    std::vector<std::uint32_t> room;
    const auto words = buffer.words(room);
    chain_keys(seed, words, size, listed, keys);
  }
  return to_key_array(std::move(keys));
}

KeyArray chain_of_hashes(nb::handle parent, Objects hashes) {
  const Digest seed = digest_of(parent, "seed");
  std::vector<std::span<const std::uint8_t>> spans;
  for (nb::handle item : hashes) {
    const std::string name = "hashes[" + std::to_string(spans.size()) + "]";
    if (!nb::isinstance<nb::bytes>(item)) throw nb::type_error((name + " must be bytes").c_str());
    const auto value = nb::borrow<nb::bytes>(item);
    if (value.size() < 1 || value.size() > kEngineHashBytesMax) {
      throw nb::value_error((name + " must be 1 to " + std::to_string(kEngineHashBytesMax) + " bytes, not " +
                             std::to_string(value.size())).c_str());
    }
    spans.emplace_back(static_cast<const std::uint8_t*>(value.data()), value.size());
  }
  std::vector<Digest> keys(spans.size());
  {
    const MaybeRelease gil(spans.size() > 64);
    chain_keys_of_hashes(seed, spans, keys);
  }
  return to_key_array(std::move(keys));
}

nb::bytes sha256_of(nb::handle data) {
  const Buffer buffer(data, "data");
  Digest digest;
  {
    const MaybeRelease gil(buffer.size() > kShortBytes);
    digest = sha256(buffer.data(), buffer.size());
  }
  return to_bytes(digest);
}

nb::bytes hmac_of(nb::handle secret, nb::handle message) {
  const Buffer key(secret, "secret"), text(message, "message");
  Digest digest;
  {
    const MaybeRelease gil(text.size() > kShortBytes);
    digest = hmac_sha256(key.bytes(), text.bytes());
  }
  return to_bytes(digest);
}

}  // namespace

void bind_keys(nb::module_& m) {
  m.attr("BLOCK_TOKENS_MAX") = kBlockTokensMax;
  m.attr("ENGINE_HASH_BYTES_MAX") = kEngineHashBytesMax;
  m.attr("EXTRAS_BYTES_MAX") = kExtrasBytesMax;
  m.attr("EXTRAS_PER_BLOCK_MAX") = kExtrasPerBlockMax;
  m.attr("EXTRA_LORA") = static_cast<int>(ExtraKind::kLora);
  m.attr("EXTRA_SALT") = static_cast<int>(ExtraKind::kSalt);
  m.attr("EXTRA_MULTIMODAL") = static_cast<int>(ExtraKind::kMultimodal);
  m.attr("EXTRA_EMBEDS") = static_cast<int>(ExtraKind::kEmbeds);
  m.def("sha256", sha256_of, nb::arg("data"), "SHA-256 of any contiguous buffer.");
  m.def("hmac_sha256", hmac_of, nb::arg("secret"), nb::arg("message"));
  m.def("keys_chain", chain, nb::arg("seed"), nb::arg("tokens"), nb::arg("block_tokens"), nb::arg("extras"),
        "Keys of all full blocks. extras: rows of (kind, first token, end token, value).");
  m.def("keys_chain_encoded", chain_encoded, nb::arg("seed"), nb::arg("tokens"), nb::arg("block_tokens"), nb::arg("extras"),
        "The same with extras encoded by the caller: rows of (block, bytes), ascending.");
  m.def("keys_chain_hashes", chain_of_hashes, nb::arg("seed"), nb::arg("hashes"),
        "Keys of blocks that the engine has hashed itself, one bytes object a block.");
}

}  // namespace kvstore::bind
