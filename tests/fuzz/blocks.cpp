// Hostile bytes as rows of a saved state. What a cache saved comes back damaged (numbers flipped,
// rows cut off, moved, taken from other states) or forged: frames, packed blocks, moves and tails
// changed under right checksums. Whatever comes, the cache stays in order: outputs are finite,
// other streams and other cells read as before, what it saves then comes back as the same bytes,
// and a good state is restored as if nothing had been.
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/half.hpp"
#include "base/random.hpp"
#include "cache/carried_bits.hpp"
#include "fuzz.hpp"
#include "zipcache/cache.hpp"

namespace zipcache::fuzz {
namespace {

// One of each kind of packed block, small enough to be carried by small heads.
constexpr const char* kPolicies[] = {
    "zip,recent=20",
    "zipcache,recent=20",
    "kivi2,v_axis=group16,recent=9",
    "uniform,bits=3,recent=0,sinks=2",
    "zip,k=4,v=4/3/2,ratio=0.1/0.3,recent=0",
    "roco,bits=2/0,ratio=0.5,recent=40,sinks=3",
    "zip2,score=last,probes=5+5,recent=0",
    "uniform,bits=2,rank=2,recent=0",
    "kvarn-k4v2,sinks=8,recent=0",
    "rdkv,bits=4/2/0,target_bits=2,recent=0",
    "sym4,k_axis=group16,v_axis=group16,recent=0",
    "turbo-k4v4,recent=0",
};
constexpr int kCells = 896;
constexpr int kTokens = 300;  // of a donor: two packed blocks and 44 rows behind them
constexpr int kCrowd = 12;    // sequences that begin a crowd
const std::vector<LayerShape> kLayers = {{1, 32, 32}, {2, 16, 32}};
constexpr SideId kSides[] = {SideId::K, SideId::V};
constexpr int kParts = 4;

constexpr int layer_of(int part) { return part % 2; }
constexpr SideId side_of(int part) { return kSides[part / 2]; }
size_t width_of(int part) {
  const LayerShape& shape = kLayers[size_t(layer_of(part))];
  return size_t(shape.n_heads) * size_t(side_of(part) == SideId::K ? shape.k_dim : shape.v_dim);
}

// Rows of K of both layers, then of V, as llama.cpp saves them: [kParts][token, width].
using State = std::array<std::vector<half>, kParts>;
using Values = std::array<std::vector<float>, kParts>;

State save(const Cache& cache, int stream, int first, int n) {
  State state;
  for (int part = 0; part < kParts; ++part) {
    state[size_t(part)].resize(size_t(n) * width_of(part));
    const Status status =
        cache.save(layer_of(part), stream, side_of(part), first, n, state[size_t(part)].data());
    require(status.ok(), "save: {}", status.message());
  }
  return state;
}

Values read(const Cache& cache, int stream, int first, int n) {
  Values values;
  for (int part = 0; part < kParts; ++part) {
    values[size_t(part)].resize(size_t(n) * width_of(part));
    const Status status =
        cache.read(layer_of(part), stream, side_of(part), first, n, values[size_t(part)].data());
    require(status.ok(), "read: {}", status.message());
    for (const float x : values[size_t(part)]) require(std::isfinite(x), "a row reads as {}", x);
  }
  return values;
}

bool is_good(std::span<const half> rows) {
  return std::all_of(rows.begin(), rows.end(), is_finite);
}

// Rows without numbers are refused, all others taken.
void restore_part(Cache& cache, int stream, int part, int first, std::span<const half> rows) {
  const Status status = cache.restore(layer_of(part), stream, side_of(part), first,
                                      int(rows.size() / width_of(part)), rows.data());
  if (!status.ok()) require_good_message(status);
  require(status.ok() == is_good(rows) && (status.ok() || status.code() == Code::BadData),
          "restore: {}", status.message());
}

void restore(Cache& cache, int stream, int first, const State& state) {
  for (int part = 0; part < kParts; ++part)
    restore_part(cache, stream, part, first, state[size_t(part)]);
}

std::vector<float> numbers(size_t n, Random& random) {
  std::vector<float> out(n);
  for (float& x : out) x = rounded_to_half(4 * random.unit() - 2);
  return out;
}

// Queries see `reach` cells up to their own, which is one of first .. + n_queries.
std::vector<float> attend(Cache& cache, int layer, int stream, int first, int n_queries, int reach,
                          Random& random) {
  const LayerShape& shape = kLayers[size_t(layer)];
  const int n_heads = 2 * shape.n_heads;
  const auto q = numbers(size_t(n_queries * n_heads * shape.k_dim), random);
  std::vector<float> out(size_t(n_queries * n_heads * shape.v_dim), NAN);
  std::vector<half> mask(size_t(n_queries * kCells), kHalfNegInf);
  for (int query = 0; query < n_queries; ++query) {
    const int end = first + query + 1, begin = std::max(0, end - reach);
    std::fill_n(&mask[size_t(query * kCells + begin)], end - begin, half{0});
  }
  Attention step;
  step.layer = layer, step.stream = stream, step.n_queries = n_queries, step.n_heads = n_heads;
  step.q = q.data(), step.q_head_stride = shape.k_dim, step.q_row_stride = n_heads * shape.k_dim;
  step.mask = mask.data(), step.mask_stride = step.n_cells = kCells;
  step.scale = 0.1f;
  step.out = out.data(), step.out_head_stride = shape.v_dim;
  step.out_row_stride = n_heads * shape.v_dim;
  const Status status = cache.attend(step);
  require(status.ok(), "attend: {}", status.message());
  for (const float x : out) require(std::isfinite(x), "attention gives {}", x);
  return out;
}

// A step of a text: cells first .. + n in both layers.
void step(Cache& cache, int stream, int first, int n, int reach, Random& random) {
  std::vector<int64_t> cells(static_cast<size_t>(n));
  std::iota(cells.begin(), cells.end(), int64_t{first});
  for (const int layer : {0, 1}) {
    for (const int part : {layer, layer + 2}) {
      const auto rows = numbers(size_t(n) * width_of(part), random);
      const Status status =
          cache.write(layer, stream, side_of(part), cells, rows.data(), ptrdiff_t(width_of(part)));
      require(status.ok(), "write: {}", status.message());
    }
    attend(cache, layer, stream, first, n, reach, random);
  }
}

// A frame of docs/formats.md, "Rows of a saved state".
struct Frame {
  static constexpr size_t kPlace = 16, kBlockSum = 24, kTotal = 32;
  static constexpr size_t kMovesSize = 36, kPartSize = 40, kTailSize = 44;
  static constexpr size_t kHead = 72, kSum = 8;
  std::string head, moves, part, tail;

  template <class T>
  T get(size_t at) const {
    T value;
    std::memcpy(&value, &head[at], sizeof value);
    return value;
  }
  template <class T>
  void set(size_t at, T value) {
    std::memcpy(&head[at], &value, sizeof value);
  }
  std::string bytes() const {
    std::string all = head + moves + part + tail;
    const uint64_t sum = XXH3_64bits(all.data(), all.size());
    return all.append(reinterpret_cast<const char*>(&sum), kSum);
  }
};

std::optional<Frame> frame_of(std::span<const half> rows) {
  const auto head = carried(rows, "ZCBLOCK2", Frame::kHead);
  if (!head) return {};
  Frame frame{*head, {}, {}, {}};
  const size_t n_moves = frame.get<uint32_t>(Frame::kMovesSize);
  const size_t n_part = frame.get<uint32_t>(Frame::kPartSize);
  const size_t n_tail = frame.get<uint32_t>(Frame::kTailSize);
  if (std::max({n_moves, n_part, n_tail}) > rows.size() * kMostCarriedBits / 8) return {};
  const auto all = carried(rows, *head, Frame::kHead + n_moves + n_part + n_tail);
  if (!all) return {};
  frame.moves = all->substr(Frame::kHead, n_moves);
  frame.part = all->substr(Frame::kHead + n_moves, n_part);
  frame.tail = all->substr(Frame::kHead + n_moves + n_part);
  return frame;
}

// The first tokens of a crowd belong to a sequence each, so that all of them are sinks. Of what
// moved, every third key was turned by one position and every fifth by two.
enum class Text { Plain, Crowd, Moved };
constexpr int kTexts = 3;

void move_keys(Cache& cache) {
  std::vector<int32_t> by(kCells);
  for (int cell = 0; cell < kTokens; ++cell)
    by[size_t(cell)] = cell % 3 == 0 ? 1 : cell % 5 == 0 ? 2 : 0;
  for (size_t layer = 0; layer < kLayers.size(); ++layer) {
    KeyTurn turn;
    for (int c = 0; c < kLayers[layer].k_dim; c += 2) turn.pairs.push_back({c, c + 1, 0.7f});
    const Status status = cache.rotate_keys(int(layer), 0, by, turn);
    require(status.ok(), "rotate_keys: {}", status.message());
  }
}

// The state of a text of kTokens tokens.
State make_donor(const char* policy, Text text) {
  const auto cache = std::move(*Cache::create({1, kCells, kLayers}, *parse_policy(policy)));
  Random random(7, uint64_t(text));
  int first = 0;
  if (text == Text::Crowd) step(*cache, 0, 0, first = kCrowd, 1, random);
  while (first < kTokens) {
    const int n = std::min(100, kTokens - first);
    step(*cache, 0, first, n, kCells, random);
    first += n;
  }
  if (text == Text::Moved) move_keys(*cache);
  require(cache->stats().blocks.packed == 2, "a donor of '{}' has no packed blocks", policy);
  State state = save(*cache, 0, 0, kTokens);
  for (int part = 0; part < kParts; ++part) {
    const auto frame =
        frame_of(std::span(state[size_t(part)]).first(kBlockTokens * width_of(part)));
    require(frame.has_value(), "no frame is found in part {} of a good state of '{}'", part,
            policy);
    require(frame->moves.empty() == (text != Text::Moved || side_of(part) == SideId::V),
            "part {} of '{}' has {} bytes of moves", part, policy, frame->moves.size());
  }
  return state;
}

const State& donor(size_t policy, Text text) {
  static std::array<std::optional<State>, kTexts * std::size(kPolicies)> made;
  std::optional<State>& state = made[kTexts * policy + size_t(text)];
  if (!state) state = make_donor(kPolicies[policy], text);
  return *state;
}

class Session {
 public:
  explicit Session(Input& bytes)
      : bytes_(bytes),
        policy_(size_t(bytes.below(std::size(kPolicies)))),
        n_streams_(1 + bytes.below(2)),
        cache_(std::move(
            *Cache::create({n_streams_, kCells, kLayers}, *parse_policy(kPolicies[policy_])))),
        random_(bytes.take<uint8_t>()),
        state_(donor(policy_, Text(bytes.below(kTexts)))) {
    restore(*cache_, 0, 0, donor(policy_, Text::Plain));
    require(cache_->stats().blocks.packed == 2, "a good state has not brought its blocks");
    others_ = good_values_ = read(*cache_, 0, 0, kTokens);
    answer_ = ask();
  }

  void run() {
    for (int call = 0; call < 50 && !bytes_.empty(); ++call) {
      switch (bytes_.below(13)) {
        case 0:
          flip();
          break;
        case 1:
          put();
          break;
        case 2:
          cut();
          break;
        case 3:
          move();
          break;
        case 4:
          splice();
          break;
        case 5:
          shift();
          break;
        case 6:
          forge_head();
          break;
        case 7:
          forge_block();
          break;
        case 8:
          forge_tail();
          break;
        case 9:
          go_on();
          break;
        case 10:
          restore_one();
          break;
        case 12:
          forge_moves();
          break;
        default:
          restore_all();
          break;
      }
    }
    restore_all();
    go_on();
    if (n_streams_ == 2) require(ask() == answer_, "another stream answers otherwise");
    comes_back();
    good_state_comes_back();
  }

 private:
  int stream() const { return n_streams_ - 1; }
  std::vector<half>& some_part() { return state_[size_t(bytes_.below(kParts))]; }
  // A place among n, n at most 65536; 0 where there is none.
  size_t place(size_t n) { return bytes_.take<uint16_t>() % std::max(n, size_t{1}); }

  // Damage.

  void flip() {
    auto& rows = some_part();
    if (rows.empty()) return;
    rows[place(rows.size())] ^= bytes_.take<uint16_t>();
  }
  void put() {
    auto& rows = some_part();
    const size_t at = place(rows.size()), n = size_t(bytes_.below(64));
    for (size_t i = at; i < std::min(at + n, rows.size()); ++i) rows[i] = bytes_.take<half>();
  }
  // Fewer tokens in one part or all of them.
  void cut() {
    const int only = bytes_.below(2 * kParts);
    const size_t n = place(kTokens + 1);
    for (int part = 0; part < kParts; ++part) {
      auto& rows = state_[size_t(part)];
      if (only >= kParts || only == part) rows.resize(std::min(rows.size(), n * width_of(part)));
    }
  }
  // Rows to another place of their part.
  void move() {
    const int part = bytes_.below(kParts);
    auto& rows = state_[size_t(part)];
    const size_t n_rows = rows.size() / width_of(part);
    if (n_rows == 0) return;
    const size_t from = place(n_rows), to = place(n_rows);
    const size_t n = std::min(1 + place(kTokens), n_rows - std::max(from, to));
    std::memmove(rows.data() + to * width_of(part), rows.data() + from * width_of(part),
                 n * width_of(part) * sizeof(half));
  }
  // Rows of another part, text or policy.
  void splice() {
    const int part = bytes_.below(kParts), from_part = bytes_.below(kParts);
    const size_t policy = bytes_.below(2) ? policy_ : size_t(bytes_.below(std::size(kPolicies)));
    const auto& from = donor(policy, Text(bytes_.below(kTexts)))[size_t(from_part)];
    auto& rows = state_[size_t(part)];
    const size_t at = place(kTokens + 1) * width_of(part), n = place(kTokens + 1) * width_of(part);
    for (size_t i = at; i < std::min({at + n, rows.size(), from.size()}); ++i) rows[i] = from[i];
  }
  // Rows of zeros before the first one, of one part or all, or none of the first rows.
  void shift() {
    const int only = bytes_.below(2 * kParts), by = bytes_.below(200) - 100;
    for (int part = 0; part < kParts; ++part) {
      auto& rows = state_[size_t(part)];
      if (only < kParts && only != part) continue;
      const size_t n = size_t(std::abs(by)) * width_of(part);
      if (by < 0)
        rows.erase(rows.begin(), rows.begin() + ptrdiff_t(std::min(n, rows.size())));
      else
        rows.insert(rows.begin(), n, half{0});
      rows.resize(std::min(rows.size(), size_t(kTokens) * width_of(part)));
    }
  }

  // Forgery.

  // Both sides of a block of a layer, where the state still has them.
  struct Forgery {
    std::array<std::span<half>, 2> rows;
    std::array<Frame, 2> sides;
    void seal() const {
      for (size_t side = 0; side < 2; ++side) carry(sides[side].bytes(), rows[side]);
    }
  };
  std::optional<Forgery> some_frames() {
    const int layer = bytes_.below(2);
    const size_t block = size_t(bytes_.below(2)), shifted = size_t(bytes_.below(256));
    Forgery forgery;
    for (size_t side = 0; side < 2; ++side) {
      const int part = layer + 2 * int(side);
      auto& rows = state_[size_t(part)];
      // Frames stand at whole blocks unless rows were put before them.
      const size_t n = kBlockTokens * width_of(part);
      const size_t at = block * n + (shifted < 128 ? shifted * width_of(part) : 0);
      if (at + n > rows.size()) return {};
      forgery.rows[side] = std::span(rows).subspan(at, n);
      const auto frame = frame_of(forgery.rows[side]);
      if (!frame) return {};
      forgery.sides[side] = *frame;
    }
    return forgery;
  }
  // Numbers at the edges of what fields hold, 32-bit floating point ones among them.
  uint32_t hostile_number() {
    constexpr uint32_t kEdges[] = {0,          1,          0x7F7FFFFF, 0x7F800000,
                                   0x7FC00000, 0x80000000, 0xFFFFFFFF, 0x7BFF7BFF};
    const int choice = bytes_.below(16);
    return choice < 8 ? kEdges[choice] : bytes_.take<uint32_t>();
  }
  void edit(std::string& bytes) {
    const size_t at = place(bytes.size()), n = size_t(1 + bytes_.below(64));
    const uint32_t number = hostile_number();
    switch (bytes_.below(8)) {
      case 0:
        bytes.erase(at, n);
        break;
      case 1:
        bytes.insert(at, n, char(number));
        break;
      case 2:
        for (size_t i = at; i < std::min(at + n, bytes.size()); ++i) bytes[i] = char(number);
        break;
      case 3:
      case 4:
        if (at / 4 * 4 + 4 <= bytes.size()) std::memcpy(&bytes[at / 4 * 4], &number, 4);
        break;
      case 5:
        if (at + 4 <= bytes.size()) std::memcpy(&bytes[at], &number, 4);
        break;
      default:
        if (!bytes.empty()) bytes[at] = char(uint8_t(bytes[at]) ^ uint8_t(number >> 8));
        break;
    }
  }

  void forge_head() {
    auto forgery = some_frames();
    if (!forgery) return;
    const int which = bytes_.below(4);  // of the sides; both are asked to agree
    const size_t at = 8 + size_t(bytes_.below(Frame::kHead - 8));
    const uint8_t by = bytes_.take<uint8_t>();
    const uint64_t place = bytes_.below(2) ? kBlockTokens * uint64_t(bytes_.below(4))
                                           : uint64_t{hostile_number()} << bytes_.below(33);
    for (size_t side = 0; side < 2; ++side) {
      Frame& frame = forgery->sides[side];
      if (which == 3)
        frame.set(Frame::kPlace, place);
      else if (which == 2 || which == int(side))
        frame.head[at] = char(uint8_t(frame.head[at]) ^ by);
    }
    forgery->seal();
  }
  // The bytes of a packed block, divided between the sides as before.
  void forge_block() {
    auto forgery = some_frames();
    if (!forgery) return;
    auto& [k, v] = forgery->sides;
    std::string block = k.part + v.part;
    for (int edits = 1 + bytes_.below(4); edits > 0; --edits) edit(block);
    const size_t k_size = std::min(k.part.size(), block.size());
    k.part = block.substr(0, k_size), v.part = block.substr(k_size);
    for (Frame* frame : {&k, &v}) {
      frame->set(Frame::kTotal, uint32_t(block.size()));
      frame->set(Frame::kBlockSum, uint64_t{XXH3_64bits(block.data(), block.size())});
      frame->set(Frame::kPartSize, uint32_t(frame->part.size()));
    }
    forgery->seal();
  }
  // Which keys were turned, how far, and how positions turn them.
  void forge_moves() {
    auto forgery = some_frames();
    if (!forgery) return;
    Frame& k = forgery->sides[0];
    for (int edits = 1 + bytes_.below(4); edits > 0; --edits) edit(k.moves);
    k.set(Frame::kMovesSize, uint32_t(k.moves.size()));
    forgery->seal();
  }
  // Scores, sinks and moments of the rows behind the blocks.
  void forge_tail() {
    auto forgery = some_frames();
    if (!forgery) return;
    Frame& v = forgery->sides[1];
    for (int edits = 1 + bytes_.below(4); edits > 0; --edits) edit(v.tail);
    v.set(Frame::kTailSize, uint32_t(v.tail.size()));
    forgery->seal();
  }

  // What the cache does.

  // Cells of a stream that it shares with the good state lie behind that one's.
  int first_cell() { return (n_streams_ == 1 ? kTokens : 0) + bytes_.below(100); }

  void restore_all() {
    first_ = first_cell(), n_ = 0;
    for (int part = 0; part < kParts; ++part) restore_and_look(part, first_, state_[size_t(part)]);
  }
  // Some rows of one part.
  void restore_one() {
    const int part = bytes_.below(kParts);
    const auto& rows = state_[size_t(part)];
    const size_t n_rows = rows.size() / width_of(part);
    const size_t from = place(n_rows), n = std::min(place(kTokens + 1), n_rows - from);
    restore_and_look(part, first_cell(),
                     std::span(rows).subspan(from * width_of(part), n * width_of(part)));
  }
  void restore_and_look(int part, int first, std::span<const half> rows) {
    const uint64_t compactions = cache_->stats().compactions;
    restore_part(*cache_, stream(), part, first, rows);
    n_ = std::max(n_, int(rows.size() / width_of(part)));
    // What a compaction moves is 16-bit, to be coded once more.
    if (n_streams_ == 2 || cache_->stats().compactions == compactions)
      require(read(*cache_, 0, 0, kTokens) == others_, "other cells have changed");
    else
      others_ = read(*cache_, 0, 0, kTokens);
  }
  void go_on() {
    const int n = 1 + bytes_.below(120), narrow = bytes_.below(4);
    const int first = std::min(first_ + n_, kCells - n);
    step(*cache_, stream(), first, n, narrow == 0 ? 1 + bytes_.below(4) : kCells, random_);
    n_ = first + n - first_;
    if (n_streams_ == 1) others_ = read(*cache_, 0, 0, kTokens);  // may have been packed
    if (bytes_.below(4) == 0) state_ = save(*cache_, stream(), first_, std::min(n_, kTokens));
  }
  std::vector<float> ask() {
    Random random(11);
    return attend(*cache_, 1, 0, kTokens - 3, 3, kCells, random);
  }

  // What is saved now comes back, and from then on as the same bytes and the same numbers. Not from
  // the first time on: rows that stood here in no order of a text, as hostile ones may, are a
  // text's where they are restored alone, and a frame before them then says more of them.
  void comes_back() {
    const State saved = come_back(save(*cache_, stream(), first_, n_));
    const Values values = read(*cache_, stream(), first_, n_);
    require(come_back(saved) == saved, "a saved state changes every time");
    require(read(*cache_, stream(), first_, n_) == values, "a restored state reads otherwise");
  }
  State come_back(const State& state) {
    cache_->clear();
    restore(*cache_, stream(), first_, state);
    return save(*cache_, stream(), first_, n_);
  }
  void good_state_comes_back() {
    const State& good = donor(policy_, Text::Plain);
    restore(*cache_, stream(), 0, good);
    require(save(*cache_, stream(), 0, kTokens) == good, "afterwards a good state is another");
    require(read(*cache_, stream(), 0, kTokens) == good_values_, "afterwards it reads otherwise");
  }

  Input& bytes_;
  const size_t policy_;
  const int n_streams_;
  std::unique_ptr<Cache> cache_;
  Random random_;
  State state_;                // what comes next, damaged so far
  int first_ = 0, n_ = 0;      // cells of the text that came
  Values good_values_;         // what the good state reads as
  Values others_;              // what cells 0 .. kTokens of stream 0 read as
  std::vector<float> answer_;  // what stream 0 answers
};

}  // namespace
}  // namespace zipcache::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  zipcache::fuzz::Input bytes(data, size);
  zipcache::fuzz::Session(bytes).run();
  return 0;
}
