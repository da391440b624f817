#include "cuda/schedule.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace zipcache::cuda {
namespace {

constexpr size_t kPiece = 16;       // bytes that places count
constexpr size_t kLine = 128;       // bytes that memory moves at once
constexpr int kBlocksTried = 1024;  // whose tiers' counts bound those of all

size_t to_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }
int blocks_in(int tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
int raw_records_in(int tokens) { return (tokens + kRawRecordTokens - 1) / kRawRecordTokens; }

Status wrong(std::string_view what, int found, std::string_view expected) {
  return {Code::BadArgument,
          fmt::format("the GPU cache found {} = {}, expected {}", what, found, expected)};
}

Status check(const ScheduleShape& shape) {
  if (shape.n_heads < 1) return wrong("n_heads", shape.n_heads, "at least 1");
  if (shape.n_streams < 1) return wrong("n_streams", shape.n_streams, "at least 1");
  if (shape.max_tokens < 1 || shape.max_tokens > 1 << 24)
    return wrong("max_tokens", shape.max_tokens, "1 to 2^24");
  if (shape.n_blocks < 0) return wrong("n_blocks", shape.n_blocks, "at least 0");
  return ok();
}

// Of records that are never packed.
PackForm form_of_rows(const RecordLayout& layout) {
  PackForm form;
  form.record = layout.form();
  return form;
}

bool same(const Record& a, const Record& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

}  // namespace

Result<Schedule> Schedule::create(const ScheduleShape& shape, const Policy& policy) {
  ZC_TRY(check(shape));
  const LayerShape layer{shape.n_heads, shape.dim, shape.dim};
  const Result<RecordLayout> layout =
      policy.raw() ? RecordLayout::of_rows(layer) : RecordLayout::create(layer, policy);
  if (!layout.ok()) return layout.status();
  const Result<PackForm> form = policy.raw() ? form_of_rows(*layout) : pack_form(layer, policy);
  if (!form.ok()) return form.status();
  ZC_TRY(check_ranks_by_scores(policy));
  Schedule schedule(shape, policy, *layout, *form);
  const size_t most = size_t{1} << 36;  // what places of 16 bytes reach
  if (schedule.sizes_.pool >= most)
    return Status{Code::BadArgument,
                  fmt::format("the GPU cache found room for {} bytes of records in a layer, "
                              "expected less than {}; take fewer blocks or tokens",
                              schedule.sizes_.pool, most)};
  return schedule;
}

Schedule::Schedule(const ScheduleShape& shape, const Policy& policy, const RecordLayout& layout,
                   const PackForm& form)
    : shape_(shape),
      policy_(policy),
      layout_(layout),
      form_(form),
      streams_(size_t(shape.n_streams)),
      counts_(size_t(shape.n_streams)),
      first_rows_(size_t(shape.n_streams)),
      last_rows_(size_t(shape.n_streams)) {
  if (policy.raw()) shape_.n_blocks = 0;
  measure();
  table_.assign(size_t(shape.n_streams), std::vector<Record>(size_t(sizes_.record_stride)));
  for (int slot = shape_.n_blocks - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Schedule::measure() {
  const size_t heads = size_t(shape_.n_heads);
  // No block has more tokens in a tier than this.
  TierCounts most = {};
  for (int block = 0; block < kBlocksTried; ++block) {
    const PackTask task = pack_task(policy_, uint64_t(block), {}, policy_.needs_scores());
    for (size_t t = 0; t < most.size(); ++t) most[t] = std::max(most[t], task.counts[t]);
  }
  int map = 0;
  for (int t = 0; t < layout_.n_tiers(); ++t)
    map += layout_.form().holds(t) ? units_of(most[size_t(t)]) * kUnitTokens : 0;
  const size_t record = layout_.bytes(most);
  sizes_.block = int(to_lines(record + size_t(map)));
  sizes_.raw = int(to_lines(raw_record_bytes(shape_.dim, kRawRecordTokens)));
  sizes_.max_record = int(std::max(record, raw_record_bytes(shape_.dim, kRawRecordTokens)));
  const int open = policy_.window.recent + kBlockTokens + kMostStepTokens;
  sizes_.ring = blocks_in(policy_.raw() ? shape_.max_tokens : open) * kBlockTokens;
  sizes_.sink_records = raw_records_in(sinks());
  const int ring_records = sizes_.ring / kRawRecordTokens;
  const int packed_entries = policy_.raw() ? 0 : 2 * blocks_in(shape_.max_tokens);
  sizes_.record_stride = packed_entries + sizes_.sink_records + ring_records;
  sizes_.sinks_at = size_t(shape_.n_blocks) * heads * size_t(sizes_.block);
  const size_t of_stream = heads * size_t(sizes_.raw);
  sizes_.ring_at =
      sizes_.sinks_at + size_t(shape_.n_streams) * size_t(sizes_.sink_records) * of_stream;
  sizes_.pool = sizes_.ring_at + size_t(shape_.n_streams) * size_t(ring_records) * of_stream;
}

// Blocks that the window has left (StreamLog::due).
int Schedule::blocks_due(int length) const {
  if (policy_.raw()) return 0;
  return std::max(0, length - policy_.window.recent) / kBlockTokens;
}

BlockBits Schedule::left_out(int block) const {
  BlockBits rows;
  for (int row = block * kBlockTokens; row < sinks() && row < (block + 1) * kBlockTokens; ++row)
    rows.set(size_t(row % kBlockTokens));
  return rows;
}

void Schedule::end_step() {
  for (Stream& stream : streams_) {
    stream.packed.insert(stream.packed.end(), stream.due.begin(), stream.due.end());
    stream.due.clear();
  }
}

Status Schedule::check_begin(std::span<const int> n_new) const {
  if (n_new.size() != streams_.size())
    return wrong("numbers of new tokens", int(n_new.size()),
                 fmt::format("{}, one for each stream", streams_.size()));
  size_t blocks = 0;
  for (size_t s = 0; s < streams_.size(); ++s) {
    const Stream& stream = streams_[s];
    if (n_new[s] < 0) return wrong("new tokens", n_new[s], "at least 0");
    if (n_new[s] > shape_.max_tokens - stream.length)
      return {Code::OverLimit,
              fmt::format("the GPU cache found {} new tokens for stream {} of {}, expected at most "
                          "{} in all; make it for more, or end the text",
                          n_new[s], s, stream.length, shape_.max_tokens)};
    // More may be packed than were due by now, where tokens were taken back.
    const int due = blocks_due(stream.length + n_new[s]);
    blocks += size_t(std::max(0, due - packed_blocks(int(s))));
  }
  if (blocks > free_slots_.size())
    return {Code::OverLimit,
            fmt::format("the GPU cache found room for {} more blocks of 128 tokens, expected {}; "
                        "make it for more, or clear a stream",
                        free_slots_.size(), blocks)};
  return ok();
}

Status Schedule::begin(std::span<const int> n_new) {
  ZC_TRY(check_begin(n_new));
  end_step();
  ring_tasks_.clear();
  own_tasks_.clear();
  prompt_ = std::any_of(n_new.begin(), n_new.end(), [](int n) { return n > kMostStepTokens; });
  for (size_t s = 0; s < streams_.size(); ++s) plan_rows(int(s), n_new[s]);
  tell_changes();
  return ok();
}

// Rows that fill a begun block go into the ring, and of the others those that stay there.
void Schedule::plan_rows(int s, int n_new) {
  Stream& stream = streams_[size_t(s)];
  const int start = stream.length, length = start + n_new, due = blocks_due(length);
  const int aligned =
      n_new <= kMostStepTokens ? length : std::min(length, blocks_in(start) * kBlockTokens);
  const int kept = std::clamp(due * kBlockTokens, aligned, length);
  stream.length = length;
  const int n_sinks = std::clamp(sinks() - start, 0, n_new);
  first_rows_[size_t(s)] = {start, 0, aligned - start, aligned, n_sinks, {}};
  last_rows_[size_t(s)] = {start, kept - start, n_new, length, 0, {}};
  while (int(stream.packed.size() + stream.due.size()) < due) plan_task(s, aligned);
}

// The next block of a stream, to be packed from where its rows are.
void Schedule::plan_task(int s, int aligned) {
  Stream& stream = streams_[size_t(s)];
  const int block = int(stream.packed.size() + stream.due.size()), place = block * kBlockTokens;
  PackTask task = pack_task(policy_, uint64_t(block), left_out(block), policy_.needs_scores());
  task.stream = s;
  task.record = sizes_.record_stride - 1 - int(stream.due.size());
  const bool in_ring = place < aligned;
  task.row = in_ring ? place % sizes_.ring : place - first_rows_[size_t(s)].place;
  (in_ring ? ring_tasks_ : own_tasks_).push_back(task);
  Record record = packed_record(free_slots_.back(), task);
  record.first = uint32_t(place);
  stream.due.push_back(record);
  free_slots_.pop_back();
}

Record Schedule::packed_record(int slot, const PackTask& task) const {
  TierCounts held = {};
  uint32_t tokens = 0;
  for (int t = 0; t < layout_.n_tiers(); ++t) {
    held[size_t(t)] = layout_.form().holds(t) ? task.counts[t] : 0;
    tokens += uint32_t(held[size_t(t)]);
  }
  const size_t at = size_t(slot) * size_t(shape_.n_heads) * size_t(sizes_.block);
  return {uint32_t(at / kPiece), uint16_t(layout_.bytes(held) / kPiece), 0, 0, tokens};
}

int Schedule::slot_of(const Record& packed) const {
  return int(size_t(packed.at) * kPiece / (size_t(shape_.n_heads) * size_t(sizes_.block)));
}

Record Schedule::raw_record(size_t at, int first, int tokens) const {
  // As long as a full one, so that rows which come later stand where they would in it.
  const size_t bytes = raw_record_bytes(shape_.dim, kRawRecordTokens);
  return {uint32_t(at / kPiece), uint16_t(bytes / kPiece), 0, uint32_t(first), uint32_t(tokens)};
}

// Packed records, those of sinks whose block is packed, and those of the ring; of a prompt, as they
// stand before it.
void Schedule::list_records(int s, std::vector<Record>& records, StreamRecords& counts) const {
  const Stream& stream = streams_[size_t(s)];
  const size_t of_record = size_t(shape_.n_heads) * size_t(sizes_.raw);
  const int packed = int(stream.packed.size());
  const int length = prompt_ ? first_rows_[size_t(s)].place : stream.length;
  records = stream.packed;
  const int begun = packed * kBlockTokens, n_sinks = std::min(sinks(), begun);
  for (int first = 0; first < n_sinks; first += kRawRecordTokens) {
    const size_t record = size_t(s * sizes_.sink_records + first / kRawRecordTokens);
    records.push_back(raw_record(sizes_.sinks_at + record * of_record, first,
                                 std::min(kRawRecordTokens, n_sinks - first)));
  }
  for (int first = begun; first < length; first += kRawRecordTokens) {
    const size_t record = size_t((s * sizes_.ring + first % sizes_.ring) / kRawRecordTokens);
    records.push_back(raw_record(sizes_.ring_at + record * of_record, first,
                                 std::min(kRawRecordTokens, length - first)));
  }
  counts = {packed, int(records.size()) - packed};
}

void Schedule::tell_changes() {
  changes_.clear();
  for (int s = 0; s < shape_.n_streams; ++s) {
    const Stream& stream = streams_[size_t(s)];
    std::vector<Record> records;
    list_records(s, records, counts_[size_t(s)]);
    records.resize(size_t(sizes_.record_stride));
    for (size_t i = 0; i < stream.due.size(); ++i) records[records.size() - 1 - i] = stream.due[i];
    std::vector<Record>& told = table_[size_t(s)];
    for (size_t i = 0; i < records.size(); ++i) {
      if (same(records[i], told[i])) continue;
      told[i] = records[i];
      const bool raw = size_t(records[i].at) * kPiece >= sizes_.sinks_at;
      changes_.push_back(
          {s, int(i), int((raw ? sizes_.raw : sizes_.block) / int(kPiece)), 0, records[i]});
    }
  }
}

Status Schedule::check_truncate(int stream, int length) const {
  if (stream < 0 || stream >= shape_.n_streams)
    return wrong("stream", stream, fmt::format("0 to {}", shape_.n_streams - 1));
  const int packed = packed_blocks(stream) * kBlockTokens, most = this->length(stream);
  if (length >= packed && length <= most) return ok();
  return {Code::Incompatible,
          fmt::format("the GPU cache found a stream to be cut to {} tokens, expected {} to {}: "
                      "those before are packed; clear the stream and compute it anew",
                      length, packed, most)};
}

Status Schedule::truncate(int stream, int length) {
  ZC_TRY(check_truncate(stream, length));
  end_step();
  streams_[size_t(stream)].length = length;
  return ok();
}

void Schedule::clear(int stream) {
  end_step();
  Stream& own = streams_[size_t(stream)];
  for (size_t i = own.packed.size(); i-- > 0;) free_slots_.push_back(slot_of(own.packed[i]));
  own = {};
}

}  // namespace zipcache::cuda
