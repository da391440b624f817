#include "cuda/fragments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/low_rank.hpp"

namespace zipcache::cuda {
namespace {

constexpr size_t kPiece = 16;  // bytes that places count

Status refused(std::string_view what, std::string_view expected) {
  return {
      Code::Incompatible,
      fmt::format("the GPU cache found {}, expected {}; take such a policy or model, or the CPU",
                  what, expected)};
}

Status check_side(const Side& side, int dim, std::string_view name) {
  if (side.axis == Axis::Group && dim % side.group != 0)
    return refused(fmt::format("{}_axis=group{} and heads of {} channels", name, side.group, dim),
                   "whole groups in a head");
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

// One side of a tier in a record. `tile` has the parts of a side in the order of a tile; their
// memory is the record's, which alone the direction ToRecord writes.
struct SideOfTier {
  bool is_k;
  int bits;
  uint16_t codes, params, factors;
  TileView tile;
};

SideOfTier side_of_tier(const RecordForm& form, const TierHeader& tier, bool is_k,
                        const uint8_t* record) {
  const SideForm& side = is_k ? form.k : form.v;
  SideOfTier out = {true, tier.k_bits, tier.k_codes, tier.k_params, tier.k_factors, {}};
  if (!is_k) out = {false, tier.v_bits, tier.v_codes, tier.v_params, tier.v_factors, {}};
  TileView& tile = out.tile;
  tile.shape = {tier.count, form.dim,   out.bits,
                side.axis,  side.group, is_k ? Lanes::Tokens : Lanes::Channels,
                side.codec, side.rank};
  if (!in_codes(out.bits) || !side.as_tile) return out;
  const uint8_t* low_rank = record + out.codes * kPiece - low_rank_bytes(tile.shape);
  tile.params = halves(record, out.params);
  if (side.channel_factors) tile.factors = halves(record, out.factors);
  if (side.token_factors)
    tile.token_factors =
        reinterpret_cast<const half*>(low_rank - token_factor_bytes(side, tier.count));
  if (side.rank > 0) tile.low_rank = reinterpret_cast<const half*>(low_rank);
  return out;
}

std::array<SideOfTier, 2> sides(const RecordForm& form, const TierHeader& tier,
                                const uint8_t* record) {
  return {side_of_tier(form, tier, true, record), side_of_tier(form, tier, false, record)};
}

Unit unit_of(const SideOfTier& side, int dim, int unit, const uint8_t* record) {
  return {side.is_k, dim, side.bits,
          const_cast<uint8_t*>(record) + side.codes * kPiece +
              size_t(unit) * size_t(unit_bytes(dim, side.bits))};
}

// Between the tile's order and the record's.
enum class Direction { ToRecord, FromRecord };

void move(Direction direction, half& in_record, half& in_tile) {
  (direction == Direction::ToRecord ? in_record : in_tile) =
      direction == Direction::ToRecord ? in_tile : in_record;
}

// Parts that stand alike in both.
void move_part(Direction direction, const half* in_record, const half* in_tile, size_t bytes) {
  if (bytes == 0 || !in_record) return;
  const bool to_record = direction == Direction::ToRecord;
  std::memcpy(const_cast<half*>(to_record ? in_record : in_tile), to_record ? in_tile : in_record,
              bytes);
}

// All but factors of channels, which belong to no tier.
void move_as_tile(Direction direction, const TileView& in_record, const TileView& in_tile) {
  const TileShape& shape = in_tile.shape;
  const size_t n_filled = size_t(padded_to(shape.n_tokens, kUnitTokens));
  move_part(direction, in_record.params, in_tile.params, param_bytes(shape));
  move_part(direction, in_record.token_factors, in_tile.token_factors, sizeof(half) * n_filled);
  move_part(direction, in_record.low_rank, in_tile.low_rank, low_rank_bytes(shape));
}

// Steps and floors in the order of operands; in a tile [sets] each.
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

void move_factors(Direction direction, const SideForm& side, int dim, half* in_record,
                  half* in_tile) {
  if (side.as_tile) return move_part(direction, in_record, in_tile, sizeof(half) * size_t(dim));
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

// Tiers that share parameters move them one after another.
void move_side(Direction direction, const SideForm& form, const SideOfTier& side,
               const TileView& tile, uint8_t* record) {
  if (tile.shape.n_tokens == 0) return;
  if (form.as_tile) {
    move_as_tile(direction, side.tile, tile);
  } else if (in_codes(side.bits)) {
    auto* params = const_cast<half*>(tile.params);
    if (form.axis == Axis::Channel)
      move_channel_params(direction, tile.shape.dim, halves(record, side.params), params);
    else
      move_token_params(direction, tile.shape.n_tokens, halves(record, side.params), params);
  }
  move_codes(direction, side, tile.shape, record, const_cast<uint8_t*>(tile.codes));
}

void move_head(Direction direction, const RecordForm& form, const TierHeader* headers,
               const PackedHead& head, uint8_t* record) {
  const auto move_channel_factors = [&](const SideForm& side, int place, half* in_tile) {
    if (side.channel_factors)
      move_factors(direction, side, form.dim, halves(record, place), in_tile);
  };
  move_channel_factors(form.k, headers[0].k_factors, head.k.factors);
  move_channel_factors(form.v, headers[0].v_factors, head.v.factors);
  for (int t = 0; t < form.n_tiers; ++t) {
    const auto [k, v] = sides(form, headers[t], record);
    move_side(direction, form.k, k, head.k.tiers[t], record);
    move_side(direction, form.v, v, head.v.tiers[t], record);
  }
}

// What the fast kernels read: the parameters of a token or channel are a pair, times a factor of
// the channel at most.
bool in_operand_order(const Side& side, bool is_k) {
  if (side.codec != Codec::Affine || side.rank > 0 || side.token_factors()) return false;
  if (is_k) return side.axis == Axis::Channel || (side.axis == Axis::Token && side.dual == 0);
  return side.axis == Axis::Token || side.axis == Axis::Cst;
}

SideForm side_form(const PackedLayout& packed, const Policy& policy, SideId id) {
  const bool is_k = id == SideId::K;
  const Side& side = is_k ? policy.k : policy.v;
  SideForm form;
  form.axis = side.axis;
  form.codec = side.codec;
  form.group = uint16_t(side.group);
  form.rank = uint8_t(side.rank);
  form.channel_factors = side.channel_factors();
  form.token_factors = side.token_factors();
  bool has_codes = false;
  for (size_t t = 0; t < policy.tiers.size(); ++t) {
    form.bits[t] = uint8_t(is_k ? policy.tiers[t].k_bits : policy.tiers[t].v_bits);
    form.params_tier[t] = uint8_t(packed.params_tier(id, t));
    has_codes = has_codes || in_codes(form.bits[t]);
  }
  form.as_tile = has_codes && !in_operand_order(side, is_k);
  return form;
}

}  // namespace

Result<RecordLayout> RecordLayout::of_rows(const LayerShape& shape) {
  if (shape.k_dim != shape.v_dim || (shape.k_dim != 64 && shape.k_dim != 128 && shape.k_dim != 256))
    return refused(fmt::format("heads of {} and {} channels", shape.k_dim, shape.v_dim),
                   "64, 128 or 256, the same for keys and values");
  RecordLayout layout;
  layout.form_.dim = shape.k_dim;
  return layout;
}

Result<RecordLayout> RecordLayout::create(const LayerShape& shape, const Policy& policy) {
  Result<RecordLayout> layout = of_rows(shape);
  if (!layout.ok()) return layout.status();
  if (policy.raw()) return refused("a policy that packs nothing", "one that packs");
  if (!policy.overrides.empty())
    return refused("fields of single layers", "the policy of one layer");
  if (policy.cadence == Cadence::Prompt)
    return refused(
        "cadence=prompt (blocks of a prompt share tiers, so that only the device would know how "
        "large their records are)",
        "cadence=stream");
  ZC_TRY(check_side(policy.k, shape.k_dim, "k"));
  ZC_TRY(check_side(policy.v, shape.v_dim, "v"));
  RecordForm& form = layout->form_;
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
  move_head(Direction::ToRecord, layout.form(), headers.data(), head, record);
  std::memcpy(record, headers.data(), size_t(layout.n_tiers()) * sizeof(TierHeader));
}

void read_record(const RecordLayout& layout, const uint8_t* record, const PackedHead& head) {
  std::array<TierHeader, kRecordTiers> headers = {};
  std::memcpy(headers.data(), record, size_t(layout.n_tiers()) * sizeof(TierHeader));
  move_head(Direction::FromRecord, layout.form(), headers.data(), head,
            const_cast<uint8_t*>(record));
}

namespace {

RecordForm raw_form(int dim) {
  RecordForm form;
  form.dim = dim;
  return form;
}

}  // namespace

size_t raw_record_bytes(int dim, int n) {
  return kPiece + 2 * size_t(units_of(n)) * size_t(unit_bytes(dim, 16));
}

void write_raw_record(int dim, int n, const half* k, const half* v, uint8_t* record) {
  std::memset(record, 0, raw_record_bytes(dim, n));
  const TierHeader tier = raw_header(dim, n, n);
  std::memcpy(record, &tier, sizeof tier);
  for_tokens(n, [&](int unit, int in_unit, int token) {
    const auto [k_side, v_side] = sides(raw_form(dim), tier, record);
    for (int c = 0; c < dim; ++c) {
      unit_of(k_side, dim, unit, record).write(in_unit, c, k[token * dim + c]);
      unit_of(v_side, dim, unit, record).write(in_unit, c, v[token * dim + c]);
    }
  });
}

std::vector<half> rows_for_record(const HeadRotation& rotation, int dim, int n, const half* rows) {
  std::vector<half> out(rows, rows + ptrdiff_t{n} * dim);
  if (!rotation.turns()) return out;
  std::vector<float> turned(out.size());
  std::transform(out.begin(), out.end(), turned.begin(), to_float);
  rotation.turn(turned.data(), n, dim, dim);
  std::transform(turned.begin(), turned.end(), out.begin(), finite_half);
  return out;
}

namespace {

// Step and floor of a number.
struct Params {
  float step = 0, floor = 0;
};

Params params_of(const SideForm& form, const SideOfTier& side, const uint8_t* record, int token,
                 int channel) {
  const TileShape& shape = side.tile.shape;
  if (form.as_tile) {
    const int set = set_of(shape, token, channel);
    const half* floors = side.tile.params + n_sets(shape);
    const bool has_floor = form.codec == Codec::Affine;
    return {step_of(shape, side.tile.params, set), has_floor ? to_float(floors[set]) : 0.0f};
  }
  const half* params = halves(record, side.params);
  if (form.axis == Axis::Channel) {
    const int place = k_param_place(channel);
    return {to_float(params[place]), to_float(params[shape.dim + place])};
  }
  return {to_float(params[2 * token]), to_float(params[2 * token + 1])};
}

float channel_factor(const SideForm& form, const SideOfTier& side, const uint8_t* record,
                     int channel) {
  if (!form.channel_factors) return 1;
  return to_float(halves(record, side.factors)[form.as_tile ? channel : v_factor_place(channel)]);
}

// As decode_tile() does.
float decoded(const SideForm& form, const SideOfTier& side, const uint8_t* record, int token,
              int channel) {
  const TileView& tile = side.tile;
  const uint32_t code =
      unit_of(side, tile.shape.dim, token / kUnitTokens, record).read(token % kUnitTokens, channel);
  if (side.bits == 16) return to_float(half(code));
  const float* levels = levels_of(form.codec, side.bits);
  const float level = levels ? levels[code] : float(code) + implied_floor(form.codec, side.bits);
  const Params params = params_of(form, side, record, token, channel);
  float value = level * params.step + params.floor;
  value *= channel_factor(form, side, record, channel);
  if (tile.token_factors) value *= to_float(tile.token_factors[token]);
  return value;
}

void decode_side(const SideForm& form, const SideOfTier& side, const uint8_t* record,
                 std::vector<float>& out) {
  const TileShape& shape = side.tile.shape;
  std::vector<float> rows;
  for (int token = 0; token < shape.n_tokens; ++token) {
    for (int c = 0; c < shape.dim; ++c) rows.push_back(decoded(form, side, record, token, c));
  }
  add_low_rank(side.tile, rows.data());
  out.insert(out.end(), rows.begin(), rows.end());
}

}  // namespace

void decode_record(const RecordForm& form, const uint8_t* record, std::vector<float>& k,
                   std::vector<float>& v) {
  TierHeader first;
  std::memcpy(&first, record, sizeof first);
  for (int t = 0; t < (first.tiers_and_form & kTierMask); ++t) {
    TierHeader tier;
    std::memcpy(&tier, record + size_t(t) * sizeof tier, sizeof tier);
    const auto [k_side, v_side] = sides(form, tier, record);
    decode_side(form.k, k_side, record, k);
    decode_side(form.v, v_side, record, v);
  }
}

}  // namespace zipcache::cuda
