// features.cu -- the compiled feature table walked over a token batch, all features in one pass over the tokens.
//
// A lane owns a row, a warp 32 neighbouring rows. Rows are walked one token after the other, so a lane that read its own
// row would touch 32 cache lines per load, one per lane: 32 cycles of the L1 for 512 bytes, below the rate of the memory.
// Instead the warp copies tiles of 32 rows x 32 tokens to shared memory, 8 lanes per row, so that each 128-byte line is
// read once and whole; two tiles per warp, the next in flight while this one is walked. A pitch of 36 words puts the
// lanes' 16-byte reads of their own rows into different banks.
//
// Tokens become classes once, in the tile; then each entry of the table is taken through the tile, its state held in
// registers meanwhile and between tiles in `states`, word k of a lane at states[32 k + lane]. Table and states lie in
// shared memory where they fit (features_shared), else in global memory behind the caches (features_global).
//
// Bytes: each token once, F floats per row. Shared-memory cycles per 32 tokens: 1 copy in, 2 + 1 for classes, then per
// automaton 1 read and a look-up of about 2.5 (bank conflicts of 32 independent states).
#include "common/device.cuh"
#include "common/status.cuh"

constexpr uint32_t kTile = 32, kPitch = 36, kTileWords = 32 * kPitch, kNone = ~0u;

// The words of src/features/table.rs.
enum Kind : uint32_t { kAutomaton, kLength, kSubstring, kEdit };
struct Entry {
  uint32_t kind, size, extent, first, second, targets;
};
struct Table {
  const uint32_t* words;
  uint32_t vocab;
};
DEV_FN uint32_t entries(const Table& table) { return table.words[0]; }
DEV_FN uint32_t width(const Table& table) { return table.words[1]; }
DEV_FN Entry entry_of(const Table& table, uint32_t at) {
  const uint32_t* w = table.words + 2 + table.vocab + 6 * at;
  return {w[0], w[1], w[2], w[3], w[4], w[5]};
}

struct Tokens {
  const uint32_t *tokens, *lengths;
  uint64_t rows;
  uint32_t longest, eos;
};

// Starts the copy of tokens [start, start + 32) of 32 rows from `first` on; what does not exist is left as it is.
DEV_FN void stage(const Tokens& batch, uint64_t first, uint32_t start, uint32_t* tile) {
  const uint32_t lane = threadIdx.x % 32;
  if (batch.longest % 4 == 0 && reinterpret_cast<uintptr_t>(batch.tokens) % 16 == 0) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
      const uint32_t r = 4 * i + lane / 8, t = lane % 8 * 4;
      if (first + r < batch.rows && start + t < batch.longest)
        dev::cp_async16(tile + r * kPitch + t, batch.tokens + (first + r) * batch.longest + start + t);
    }
  } else if (start + lane < batch.longest) {
#pragma unroll 8
    for (uint32_t r = 0; r < 32; r++)
      if (first + r < batch.rows) tile[r * kPitch + lane] = batch.tokens[(first + r) * batch.longest + start + lane];
  }
  dev::cp_async_commit();
}

// Calls step(word) for the first `count` words of a lane's row of the tile.
template <typename Step> DEV_FN void for_words(const uint32_t* row, uint32_t count, Step step) {
  for (uint32_t at = 0; at < count; at += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(row + at);
    step(four.x);
    if (at + 1 < count) step(four.y);
    if (at + 2 < count) step(four.z);
    if (at + 3 < count) step(four.w);
  }
}

// Tokens of a lane's row become classes; true where one is outside the vocabulary.
DEV_FN bool classify(const Table& table, uint32_t* row, uint32_t count) {
  bool bad = false;
  const auto class_of = [&](uint32_t token, bool used) {
    const bool known = token < table.vocab;
    bad |= used && !known;
    return known ? table.words[2 + token] : 0;
  };
  for (uint32_t at = 0; at < count; at += 4) {
    uint4& four = *reinterpret_cast<uint4*>(row + at);
    four = make_uint4(class_of(four.x, true), class_of(four.y, at + 1 < count), class_of(four.z, at + 2 < count),
                      class_of(four.w, at + 3 < count));
  }
  return bad;
}

// The longest suffix of the text so far that is a substring of the pattern lies in states[0] and has states[32] tokens;
// states[64] is the most so far.
DEV_FN void walk_substring(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count,
                           uint32_t* states) {
  const uint32_t *next = table.words + entry.first, *links = table.words + entry.second, classes = width(table);
  uint32_t state = states[0], matched = states[32], longest = states[64];
  for_words(row, count, [&](uint32_t c) {
    uint32_t to = next[state * classes + c];
    while (to == kNone && state != 0) {
      state = links[2 * state];
      matched = links[2 * state + 1];
      to = next[state * classes + c];
    }
    if (to != kNone) {
      state = to;
      matched++;
      longest = max(longest, matched);
    }
  });
  states[0] = state, states[32] = matched, states[64] = longest;
}

// One column of one block of 32 pattern tokens (Myers 1999, Hyyro 2003); `carry` in {-1, 0, 1} is the change of the
// distance at the row above the block, the result that at row `out` of it.
DEV_FN int edit_block(uint32_t& plus, uint32_t& minus, uint32_t equal, int carry, uint32_t out) {
  const uint32_t down = carry < 0, up = carry > 0, vertical = equal | minus;
  equal |= down;
  const uint32_t horizontal = (((equal & plus) + plus) ^ plus) | equal;
  uint32_t grows = minus | ~(horizontal | plus), shrinks = plus & horizontal;
  const int change = int(grows >> out & 1) - int(shrinks >> out & 1);
  grows = grows << 1 | up, shrinks = shrinks << 1 | down;
  plus = shrinks | ~(vertical | grows);
  minus = grows & vertical;
  return change;
}

// states: distance, smallest, then plus and minus of each block. A block is taken through the whole tile before the
// next; what it hands down per token fits the bits of two words.
DEV_FN void walk_edit(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count, uint32_t* states) {
  uint32_t up = 0, down = 0;
  for (uint32_t word = 0; word < entry.extent; word++) {
    const uint32_t* masks = table.words + entry.first + word;
    const uint32_t out = word + 1 == entry.extent ? (entry.size - 1) % 32 : 31;
    uint32_t &plus_at = states[(2 + 2 * word) * 32], &minus_at = states[(3 + 2 * word) * 32];
    uint32_t plus = plus_at, minus = minus_at, bit = 0, next_up = 0, next_down = 0;
    for_words(row, count, [&](uint32_t c) {
      const int carry = int(up >> bit & 1) - int(down >> bit & 1);
      const int change = edit_block(plus, minus, masks[c * entry.extent], carry, out);
      next_up |= uint32_t(change > 0) << bit, next_down |= uint32_t(change < 0) << bit;
      bit++;
    });
    plus_at = plus, minus_at = minus, up = next_up, down = next_down;
  }
  uint32_t distance = states[0], smallest = states[32];
  for (uint32_t bit = 0; bit < count; bit++) {
    distance += (up >> bit & 1) - (down >> bit & 1);
    smallest = min(smallest, distance);
  }
  states[0] = distance, states[32] = smallest;
}

// Words of state that an entry needs.
DEV_FN uint32_t state_words(const Entry& entry) {
  return entry.kind == kAutomaton ? 1 : entry.kind == kSubstring ? 3 : entry.kind == kEdit ? 2 + 2 * entry.extent : 0;
}

DEV_FN void start(const Table& table, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    const uint32_t words = state_words(entry);
    for (uint32_t k = 0; k < words; k++)
      states[32 * k] = entry.kind != kEdit ? 0 : k < 2 ? entry.size : k % 2 == 0 ? ~0u : 0;
    states += 32 * words;
  }
}

// Takes every entry through `count` classes.
DEV_FN void walk(const Table& table, const uint32_t* row, uint32_t count, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kAutomaton) {  // states are stored times the number of classes
      const uint32_t* next = table.words + entry.first;
      uint32_t state = states[0];
      for_words(row, count, [&](uint32_t c) { state = next[state + c]; });
      states[0] = state;
    } else if (entry.kind == kSubstring) {
      walk_substring(table, entry, row, count, states);
    } else if (entry.kind == kEdit) {
      walk_edit(table, entry, row, count, states);
    }
    states += 32 * state_words(entry);
  }
}

// Writes the features of a row of `length` tokens to out.
DEV_FN void finish(const Table& table, uint32_t length, uint32_t longest, const uint32_t* states, float* out) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    const uint32_t* targets = table.words + entry.targets;
    const float size = float(entry.size);
    if (entry.kind == kAutomaton) {
      const uint32_t* values = table.words + entry.second + states[0] / width(table) * entry.extent;
      for (uint32_t k = 0; k < entry.extent; k++) out[targets[k]] = __uint_as_float(values[k]);
    } else if (entry.kind == kLength) {
      const float part = float(length) / float(longest);
      out[targets[0]] = entry.size == 1 ? part : part * part;
    } else {
      const uint32_t matched = entry.kind == kSubstring ? states[64] : entry.size - states[32];
      out[targets[0]] = float(matched) / size;
    }
    states += 32 * state_words(entry);
  }
}

// The 32 rows from `first` on, by one warp. tiles: two of them.
DEV_FN void rows_of_warp(const Table& table, const Tokens& batch, uint64_t first, uint32_t features, uint32_t* tiles,
                         uint32_t* states, float* phi, unsigned long long* status) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t row = first + lane;
  uint32_t length = row < batch.rows ? batch.lengths[row] : 0;
  bool bad = row < batch.rows && (length == 0 || length > batch.longest);
  if (bad) length = 0;
  const uint32_t count_tiles = (__reduce_max_sync(~0u, length) + kTile - 1) / kTile;
  start(table, states);
  stage(batch, first, 0, tiles);
  for (uint32_t k = 0; k < count_tiles; k++) {
    uint32_t* mine = tiles + k % 2 * kTileWords + lane * kPitch;
    stage(batch, first, k + 1 < count_tiles ? (k + 1) * kTile : batch.longest, tiles + (k + 1) % 2 * kTileWords);
    dev::cp_async_wait<1>();
    __syncwarp();  // the other lanes' copies
    uint32_t count = length > k * kTile ? min(length - k * kTile, kTile) : 0;
    if (count && k * kTile + count == length && mine[count - 1] == batch.eos) count--;
    bad |= classify(table, mine, count);
    walk(table, mine, count, states);
    __syncwarp();  // before the tile is written again
  }
  dev::cp_async_wait<0>();
  if (bad) note_fault(status, row, kBadRow);
  // Rows of few features leave through the tile, as whole lines.
  const bool staged = features <= 2 * kPitch;
  float* out = staged ? reinterpret_cast<float*>(tiles) + lane * features : phi + row * features;
  __syncwarp();
  if (row < batch.rows) {
    if (!bad) finish(table, length, batch.longest, states, out);
    for (uint32_t f = 0; bad && f < features; f++) out[f] = NAN;
  }
  __syncwarp();
  const uint64_t left = batch.rows - first, values = (left < 32 ? left : 32) * features;
  for (uint64_t at = lane; staged && at < values; at += 32)
    phi[first * features + at] = reinterpret_cast<float*>(tiles)[at];
  __syncwarp();  // mutation: the next rows' reduction meets before the tile is written; this orders what was read
}

// phi[rows, features] of a batch. Dynamic shared memory: kShared ? the table (padded to 4 words) : nothing, two tiles
// per warp, then kShared ? states[state_words * 32] per warp : nothing; otherwise `spare` has that many words for every
// warp of the grid. At most 256 threads, any grid.
template <bool kShared>
DEV_FN void features_of(const uint32_t* words, uint32_t word_count, uint32_t vocab, Tokens batch, uint32_t features,
                        uint32_t states_per_row, uint32_t* spare, float* phi, unsigned long long* status) {
  SHARED_DYN(uint32_t, memory);
  const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  const uint32_t table_words = kShared ? (word_count + 3) / 4 * 4 : 0;
  if (kShared) {
    for (uint32_t at = threadIdx.x; at < word_count; at += blockDim.x) memory[at] = words[at];
    __syncthreads();
  }
  const Table table{kShared ? memory : words, vocab};
  const uint64_t warp_in_grid = uint64_t(blockIdx.x) * warps + warp;
  uint32_t* tiles = memory + table_words + warp * 2 * kTileWords;
  uint32_t* states = kShared ? memory + table_words + warps * 2 * kTileWords + warp * states_per_row * 32
                             : spare + warp_in_grid * states_per_row * 32;
  for (uint64_t first = warp_in_grid * 32; first < batch.rows; first += uint64_t(gridDim.x) * warps * 32)
    rows_of_warp(table, batch, first, features, tiles, states + lane, phi, status);
}

extern "C" __global__ void __launch_bounds__(256, 4)
features_shared(const uint32_t* words, uint32_t word_count, uint32_t vocab, const uint32_t* tokens,
                const uint32_t* lengths, uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features,
                uint32_t states_per_row, float* phi, unsigned long long* status) {
  const Tokens batch{tokens, lengths, rows, longest, eos};
  features_of<true>(words, word_count, vocab, batch, features, states_per_row, nullptr, phi, status);
}

extern "C" __global__ void __launch_bounds__(256, 4)
features_global(const uint32_t* words, uint32_t vocab, const uint32_t* tokens, const uint32_t* lengths, uint64_t rows,
                uint32_t longest, uint32_t eos, uint32_t features, uint32_t states_per_row, uint32_t* spare, float* phi,
                unsigned long long* status) {
  const Tokens batch{tokens, lengths, rows, longest, eos};
  features_of<false>(words, 0, vocab, batch, features, states_per_row, spare, phi, status);
}

EXPORT_KERNEL(features_shared)
EXPORT_KERNEL(features_global)
