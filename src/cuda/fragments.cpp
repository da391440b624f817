#include "cuda/fragments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "transform/hadamard.hpp"

namespace zipcache::cuda {
namespace {

constexpr size_t kPiece = 16;  // bytes that places count

Status refused(std::string_view what) {
  return {Code::Incompatible, fmt::format("the GPU cache found {}, expected keys with parameters "
                                          "of channels or tokens, values with "
                                          "parameters of tokens, affine codes and heads of 64, 128 "
                                          "or 256 channels; take such a policy "
                                          "(zip, zipcache, uniform4, had4), or the CPU",
                                          what)};
}

// A side's parts that no record has a place for.
Status check_side(const Side& side, const char* name) {
  if (side.codec != Codec::Affine) return refused(fmt::format("{}_codec other than affine", name));
  if (side.rank > 0) return refused(fmt::format("{}_rank={}", name, side.rank));
  if (side.token_factors()) return refused(fmt::format("{}_dual on sets along channels", name));
  if (side.rotation == Rotation::File) return refused(fmt::format("{}_rotate=file", name));
  return ok();
}

const half* halves(const uint8_t* record, size_t place) {
  return reinterpret_cast<const half*>(record + place * kPiece);
}
half* halves(uint8_t* record, size_t place) {
  return reinterpret_cast<half*>(record + place * kPiece);
}

// One unit's words of codes or of 16-bit numbers.
class Unit {
 public:
  Unit(bool is_k, int dim, int bits, uint8_t* words)
      : is_k_(is_k), dim_(dim), bits_(bits), words_(words) {}

  uint32_t read(int token, int channel) const {
    const Place at = code_place(is_k_, dim_, bits_, token, channel);
    if (bits_ != 3) return word(at.word) >> at.shift & ((1u << bits_) - 1);
    const Place top = top_bit_place(is_k_, token, channel);
    return (word(at.word) >> at.shift & 3) | (word(top.word) >> top.shift & 1) << 2;
  }

  // The words must hold zeros there.
  void write(int token, int channel, uint32_t value) const {
    const Place at = code_place(is_k_, dim_, bits_, token, channel);
    if (bits_ != 3) return add(at, value);
    add(at, value & 3);
    add(top_bit_place(is_k_, token, channel), value >> 2);
  }

 private:
  uint32_t word(int index) const {
    uint32_t value;
    std::memcpy(&value, words_ + size_t(index) * sizeof value, sizeof value);
    return value;
  }
  void add(Place at, uint32_t value) const {
    const uint32_t both = word(at.word) | value << at.shift;
    std::memcpy(words_ + size_t(at.word) * sizeof both, &both, sizeof both);
  }

  bool is_k_;
  int dim_, bits_;
  uint8_t* words_;
};

// Visits unit, token in it and token of the tier.
template <class Visit>
void for_tokens(int count, Visit&& visit) {
  for (int token = 0; token < count; ++token)
    visit(token / kUnitTokens, token % kUnitTokens, token);
}

struct SideOfTier {
  bool is_k;
  int bits;
  uint16_t codes, params;
};

std::array<SideOfTier, 2> sides(const TierHeader& tier) {
  return {{{true, tier.k_bits, tier.k_codes, tier.k_params},
           {false, tier.v_bits, tier.v_codes, tier.v_params}}};
}

Unit unit_of(const SideOfTier& side, int dim, int unit, const uint8_t* record) {
  return {side.is_k, dim, side.bits,
          const_cast<uint8_t*>(record) + side.codes * kPiece +
              size_t(unit) * size_t(unit_bytes(dim, side.bits))};
}

// Steps and floors between the tile's order, [sets] each, and the record's.
enum class Direction { ToRecord, FromRecord };

void move(Direction direction, half& in_record, half& in_tile) {
  (direction == Direction::ToRecord ? in_record : in_tile) =
      direction == Direction::ToRecord ? in_tile : in_record;
}

void move_channel_params(Direction direction, int dim, half* in_record, half* in_tile) {
  for (int c = 0; c < dim; ++c) {
    for (int part = 0; part < 2; ++part)
      move(direction, in_record[part * dim + k_param_place(c)], in_tile[part * dim + c]);
  }
}

void move_token_params(Direction direction, int count, half* in_record, half* in_tile) {
  const int n_sets = padded_to(count, kUnitTokens);
  for (int t = 0; t < count; ++t) {
    for (int part = 0; part < 2; ++part)
      move(direction, in_record[2 * t + part], in_tile[part * n_sets + t]);
  }
}

void move_factors(Direction direction, int dim, half* in_record, half* in_tile) {
  for (int c = 0; c < dim; ++c) move(direction, in_record[v_factor_place(c)], in_tile[c]);
}

void move_codes(Direction direction, const SideOfTier& side, const TileShape& tile,
                const uint8_t* record, uint8_t* codes) {
  for_tokens(tile.n_tokens, [&](int unit, int in_unit, int token) {
    const Unit words = unit_of(side, tile.dim, unit, record);
    for (int c = 0; c < tile.dim; ++c) {
      if (tile.bits == 16) {
        half& value = reinterpret_cast<half*>(codes)[token * tile.dim + c];
        if (direction == Direction::ToRecord)
          words.write(in_unit, c, value);
        else
          value = half(words.read(in_unit, c));
      } else if (direction == Direction::ToRecord) {
        words.write(in_unit, c, read_code(tile, codes, token, c));
      } else {
        write_code(tile, codes, token, c, uint8_t(words.read(in_unit, c)));
      }
    }
  });
}

void move_side(Direction direction, const SideOfTier& side, bool by_channel, bool own_params,
               const TileView& tile, const uint8_t* record) {
  if (tile.shape.n_tokens == 0) return;
  auto* params = const_cast<half*>(tile.params);
  auto* in_record = halves(const_cast<uint8_t*>(record), side.params);
  if (coded(side.bits) && !by_channel)
    move_token_params(direction, tile.shape.n_tokens, in_record, params);
  if (coded(side.bits) && by_channel && own_params)
    move_channel_params(direction, tile.shape.dim, in_record, params);
  move_codes(direction, side, tile.shape, record, const_cast<uint8_t*>(tile.codes));
}

// A tier's own parameters are not those of a tier before it.
bool owns_params(const std::array<TierHeader, kRecordTiers>& headers, int tier) {
  for (int t = 0; t < tier; ++t) {
    if (headers[size_t(t)].count > 0 &&
        headers[size_t(t)].k_params == headers[size_t(tier)].k_params)
      return false;
  }
  return true;
}

void move_head(Direction direction, const RecordLayout& layout,
               const std::array<TierHeader, kRecordTiers>& headers, const PackedHead& head,
               const uint8_t* record) {
  if (layout.v_factors())
    move_factors(direction, layout.dim(),
                 halves(const_cast<uint8_t*>(record), headers[0].v_factors), head.v.factors);
  for (int t = 0; t < layout.n_tiers(); ++t) {
    const auto [k, v] = sides(headers[size_t(t)]);
    // Where tiers share key parameters the first one's tile holds them, tokens or not.
    move_side(direction, k, !layout.k_by_token(), owns_params(headers, t), head.k.tiers[t], record);
    move_side(direction, v, false, true, head.v.tiers[t], record);
  }
}

SideForm side_form(const PackedLayout& packed, const Policy& policy, SideId id) {
  const Side& side = id == SideId::K ? policy.k : policy.v;
  SideForm form;
  form.axis = side.axis;
  form.codec = side.codec;
  form.group = uint16_t(side.group);
  form.rank = uint8_t(side.rank);
  form.channel_factors = side.channel_factors();
  form.token_factors = side.token_factors();
  for (size_t t = 0; t < policy.tiers.size(); ++t) {
    form.bits[t] = uint8_t(id == SideId::K ? policy.tiers[t].k_bits : policy.tiers[t].v_bits);
    form.params_tier[t] = uint8_t(packed.params_tier(id, t));
  }
  return form;
}

}  // namespace

Result<RecordLayout> RecordLayout::create(const LayerShape& shape, const Policy& policy) {
  if (shape.k_dim != shape.v_dim || (shape.k_dim != 64 && shape.k_dim != 128 && shape.k_dim != 256))
    return refused(fmt::format("heads of {} and {} channels", shape.k_dim, shape.v_dim));
  if (policy.raw()) return refused("a policy that packs nothing");
  ZC_TRY(check_side(policy.k, "k"));
  ZC_TRY(check_side(policy.v, "v"));
  if (policy.k.axis != Axis::Channel && policy.k.axis != Axis::Token)
    return refused("another k_axis");
  if (policy.v.axis != Axis::Token && policy.v.axis != Axis::Cst) return refused("another v_axis");
  if (policy.k.channel_factors()) return refused("channel factors of keys");
  if (policy.cadence == Cadence::Prompt) return refused("cadence=prompt");
  RecordLayout layout;
  RecordForm& form = layout.form_;
  form.dim = shape.k_dim;
  form.n_tiers = int(policy.tiers.size());
  const PackedLayout packed(shape, policy);
  form.k = side_form(packed, policy, SideId::K);
  form.v = side_form(packed, policy, SideId::V);
  return layout;
}

std::array<TierHeader, kRecordTiers> RecordLayout::headers(const TierCounts& counts) const {
  std::array<TierHeader, kRecordTiers> headers = {};
  place_record(form_, counts.data(), headers.data());
  return headers;
}

size_t RecordLayout::bytes(const TierCounts& counts) const {
  std::array<TierHeader, kRecordTiers> headers = {};
  return size_t(place_record(form_, counts.data(), headers.data())) * kPiece;
}

void write_record(const RecordLayout& layout, const PackedHead& head, uint8_t* record) {
  const auto headers = layout.headers(head.held);
  std::memset(record, 0, layout.bytes(head.held));
  move_head(Direction::ToRecord, layout, headers, head, record);
  std::memcpy(record, headers.data(), size_t(layout.n_tiers()) * sizeof(TierHeader));
}

void read_record(const RecordLayout& layout, const uint8_t* record, const PackedHead& head) {
  std::array<TierHeader, kRecordTiers> headers = {};
  std::memcpy(headers.data(), record, size_t(layout.n_tiers()) * sizeof(TierHeader));
  move_head(Direction::FromRecord, layout, headers, head, record);
}

size_t raw_record_bytes(int dim, int n) {
  return kPiece + 2 * size_t(units_of(n)) * size_t(unit_bytes(dim, 16));
}

void write_raw_record(int dim, int n, const half* k, const half* v, uint8_t* record) {
  std::memset(record, 0, raw_record_bytes(dim, n));
  const TierHeader tier = raw_header(dim, n, n);
  std::memcpy(record, &tier, sizeof tier);
  for_tokens(n, [&](int unit, int in_unit, int token) {
    const auto [k_side, v_side] = sides(tier);
    for (int c = 0; c < dim; ++c) {
      unit_of(k_side, dim, unit, record).write(in_unit, c, k[token * dim + c]);
      unit_of(v_side, dim, unit, record).write(in_unit, c, v[token * dim + c]);
    }
  });
}

std::vector<half> rows_for_record(const Side& side, int dim, int n, const half* rows) {
  std::vector<half> out(rows, rows + ptrdiff_t{n} * dim);
  if (side.rotation != Rotation::Hadamard) return out;
  std::vector<float> turned(out.size());
  std::transform(out.begin(), out.end(), turned.begin(), to_float);
  hadamard(turned.data(), n, dim, dim);
  std::transform(turned.begin(), turned.end(), out.begin(), finite_half);
  return out;
}

namespace {

float decoded(const TierHeader& tier, const SideOfTier& side, int dim, const uint8_t* record,
              int unit, int in_unit, int token, int channel) {
  const uint32_t code = unit_of(side, dim, unit, record).read(in_unit, channel);
  float value;
  if (side.bits == 16) {
    value = to_float(half(code));
  } else if (side.is_k && !(tier.tiers_and_form & kKeysByToken)) {
    const half* params = halves(record, side.params);
    value =
        decode(uint8_t(code), params[k_param_place(channel)], params[dim + k_param_place(channel)]);
  } else {
    const half* params = halves(record, side.params) + 2 * token;
    value = decode(uint8_t(code), params[0], params[1]);
  }
  if (!side.is_k && tier.v_factors && side.bits != 16)
    value *= to_float(halves(record, tier.v_factors)[v_factor_place(channel)]);
  return value;
}

}  // namespace

void decode_record(int dim, const uint8_t* record, std::vector<float>& k, std::vector<float>& v) {
  TierHeader first;
  std::memcpy(&first, record, sizeof first);
  for (int t = 0; t < (first.tiers_and_form & kTierMask); ++t) {
    TierHeader tier;
    std::memcpy(&tier, record + size_t(t) * sizeof tier, sizeof tier);
    for_tokens(tier.count, [&](int unit, int in_unit, int token) {
      const auto [k_side, v_side] = sides(tier);
      for (int c = 0; c < dim; ++c) {
        k.push_back(decoded(tier, k_side, dim, record, unit, in_unit, token, c));
        v.push_back(decoded(tier, v_side, dim, record, unit, in_unit, token, c));
      }
    });
  }
}

}  // namespace zipcache::cuda
