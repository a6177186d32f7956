// Keys of lattice vertices and the hash table that numbers them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"

namespace crfasrnn {

// The first d coordinates of a vertex (the last one is implied), each in its own field of bits, wide
// enough that no neighbour of a vertex can overflow it. A step along an axis is then one addition.
template <int Words>
struct Key {
  std::array<std::uint64_t, Words> words;

  // Not defaulted: that would call memcmp.
  bool operator==(const Key& other) const {
    std::uint64_t difference = 0;
    for (int i = 0; i < Words; ++i) difference |= words[i] ^ other.words[i];
    return difference == 0;
  }
  Key operator+(const Key& step) const {
    Key sum;
    for (int i = 0; i < Words; ++i) sum.words[i] = words[i] + step.words[i];
    return sum;
  }
  std::uint64_t hash() const {
    std::uint64_t h = 0;
    for (int i = 0; i < Words; ++i) {
      h = (h ^ words[i]) * 0x9E3779B97F4A7C15U;
      if constexpr (Words > 1) h ^= h >> 32;
    }
    return h;
  }
};

// Where each coordinate sits in a key.
struct KeyLayout {
  int n_dims = 0;
  int n_words = 0;
  std::int32_t low[max_dims] = {};
  int word[max_dims] = {};
  int shift[max_dims] = {};
  int width[max_dims] = {};

  KeyLayout(const Bounds& bounds, int d) : n_dims(d) {
    // A corner lies within d + 1 of the rounded point, that within d + 1 of the point, and a
    // neighbour d further; one more d + 1 for good measure.
    const int margin = 4 * (d + 1);
    int used = 64;
    n_words = 0;
    for (int j = 0; j < d; ++j) {
      low[j] = static_cast<std::int32_t>(std::floor(bounds.low[j])) - margin;
      const auto high = static_cast<std::int32_t>(std::ceil(bounds.high[j])) + margin;
      width[j] = std::bit_width(static_cast<std::uint32_t>(high - low[j]));
      if (used + width[j] > 64) {
        ++n_words;
        used = 0;
      }
      word[j] = n_words - 1;
      shift[j] = used;
      used += width[j];
    }
  }

  template <int Words>
  Key<Words> unit(int j) const {
    Key<Words> key{};
    if (j < n_dims) key.words[word[j]] = std::uint64_t{1} << shift[j];
    return key;
  }

  // Coordinate j < d of a vertex, less low[j].
  template <int Words>
  std::uint64_t field(const Key<Words>& key, int j) const {
    return (key.words[word[j]] >> shift[j]) & ((std::uint64_t{1} << width[j]) - 1);
  }

  // One step along axis j: +1 in every coordinate but -d in coordinate j.
  template <int Words>
  Key<Words> step(int j) const {
    Key<Words> key{};
    for (int i = 0; i < n_dims; ++i) key = key + unit<Words>(i);
    const Key<Words> own = unit<Words>(j);
    for (int i = 0; i < Words; ++i) key.words[i] -= own.words[i] * static_cast<std::uint64_t>(n_dims + 1);
    return key;
  }
};

// Open addressing with linear probing; vertices are numbered as they come. Keys are looked up many at
// a time: their slots are on the way to the processor meanwhile, and what most of them find is decided
// without a branch, which could not be predicted.
template <int Words>
class VertexTable {
 public:
  static constexpr std::uint32_t absent = 0xFFFFFFFFU;
  static constexpr std::size_t most_at_once = 272;  // the corners of 16 points with 16 dimensions

  explicit VertexTable(std::size_t expected) { resize(std::bit_ceil(std::max<std::size_t>(2 * expected, 512))); }

  std::size_t size() const { return size_; }
  const Key<Words>* keys() const { return keys_.data(); }

  // numbers[k] of wanted[k], or absent.
  void find(const Key<Words>* wanted, std::size_t count, std::uint32_t* numbers) const {
    Positions position;
    prefetch(wanted, count, position);
    std::uint32_t others[most_at_once + 1];
    std::size_t n_others = 0;
    for (std::size_t k = 0; k < count; ++k) {
      const Slot& slot = slots_[position[k]];
      numbers[k] = slot.id;
      others[n_others] = static_cast<std::uint32_t>(k);
      n_others += static_cast<std::size_t>(!(slot.key == wanted[k]) & (slot.id != absent));
    }
    for (std::size_t o = 0; o < n_others; ++o) {
      const std::uint32_t k = others[o];
      std::size_t i = position[k];
      do i = (i + 1) & mask_;
      while (slots_[i].id != absent && !(slots_[i].key == wanted[k]));
      numbers[k] = slots_[i].id;
    }
  }

  // The same for keys of which those that are not there are added.
  void find_or_add(const Key<Words>* wanted, std::size_t count, std::uint32_t* numbers) {
    while (2 * (size_ + count) > slots_.size()) resize(2 * slots_.size());
    Positions position;
    prefetch(wanted, count, position);
    std::uint32_t others[most_at_once + 1];
    std::size_t n_others = 0;
    for (std::size_t k = 0; k < count; ++k) {
      const Slot& slot = slots_[position[k]];
      numbers[k] = slot.id;
      others[n_others] = static_cast<std::uint32_t>(k);
      n_others += static_cast<std::size_t>(!(slot.key == wanted[k]));
    }
    for (std::size_t o = 0; o < n_others; ++o) {
      const std::uint32_t k = others[o];
      std::size_t i = position[k];
      while (slots_[i].id != absent && !(slots_[i].key == wanted[k])) i = (i + 1) & mask_;
      if (slots_[i].id == absent) {
        slots_[i] = {wanted[k], static_cast<std::uint32_t>(size_)};
        keys_[size_++] = wanted[k];
      }
      numbers[k] = slots_[i].id;
    }
  }

 private:
  struct Slot {
    Key<Words> key;
    std::uint32_t id;
  };
  using Positions = std::uint32_t[most_at_once];

  void prefetch(const Key<Words>* wanted, std::size_t count, Positions& position) const {
    for (std::size_t k = 0; k < count; ++k) {
      position[k] = static_cast<std::uint32_t>(wanted[k].hash() >> shift_);
#if defined(__GNUC__)
      __builtin_prefetch(&slots_[position[k]]);
#endif
    }
  }

  void resize(std::size_t n_slots) {
    Buffer<Slot> slots(n_slots);
    Buffer<Key<Words>> keys(n_slots / 2 + 1);
    mask_ = n_slots - 1;
    shift_ = 64 - std::bit_width(mask_);
    // The margins of a layout keep every field of a key below its largest value: no vertex has this key.
    Slot empty{{}, absent};
    empty.key.words.fill(~std::uint64_t{0});
    in_pieces(n_slots, pause, [&](std::size_t begin, std::size_t end) {
      std::fill(slots.data() + begin, slots.data() + end, empty);
    });
    if (size_ != 0) std::memcpy(keys.data(), keys_.data(), size_ * sizeof(Key<Words>));
    in_pieces(size_, pause, [&](std::size_t begin, std::size_t end) {
      for (std::size_t id = begin; id < end; ++id) {
        std::size_t i = keys[id].hash() >> shift_;
        while (slots[i].id != absent) i = (i + 1) & mask_;
        slots[i] = {keys[id], static_cast<std::uint32_t>(id)};
      }
    });
    slots_ = std::move(slots);
    keys_ = std::move(keys);
  }

  Buffer<Slot> slots_;
  Buffer<Key<Words>> keys_;
  std::size_t size_ = 0;
  std::size_t mask_ = 0;
  int shift_ = 0;
};

// Keys of any lattice, numbered by hashing; the counterpart of PlaneKeys.
template <int Words>
class HashKeys {
 public:
  using Key = crfasrnn::Key<Words>;
  using Table = VertexTable<Words>;
  using RunTable = Table;

  explicit HashKeys(const KeyLayout& layout) : layout_(layout) {}

  const KeyLayout& layout() const { return layout_; }
  // The corners of remainder 0, of all lanes.
  void origins(const SimplexBlock& simplices, Key* keys) const {
    std::fill_n(keys, simplex_lanes, Key{});
    for (int j = 0; j < layout_.n_dims; ++j) {
      const int word = layout_.word[j];
      const int shift = layout_.shift[j];
      const std::int32_t low = layout_.low[j];
      for (int l = 0; l < simplex_lanes; ++l) {
        const auto above_low = static_cast<std::uint32_t>(simplices.origin[j][l] - low);
        keys[l].words[word] += static_cast<std::uint64_t>(above_low) << shift;
      }
    }
  }
  Key step(int j) const { return layout_.template step<Words>(j); }
  RunTable run_table(std::size_t n_points) const { return RunTable(2 * n_points); }
  Table joint_table(std::size_t n_found) const { return Table(n_found / 2); }

 private:
  KeyLayout layout_;
};

// A set of keys that answers "not in it" from a small array of bits, 16 to 32 of them per key: it stays in
// the cache while the table of a large image does not.
class VertexFilter {
 public:
  template <int Words>
  VertexFilter(const Key<Words>* keys, std::size_t count)
      : bits_(std::bit_ceil(std::max<std::size_t>(16 * count, 512)) / 64),
        shift_(64 - std::bit_width(64 * bits_.size() - 1)) {
    std::fill(bits_.data(), bits_.data() + bits_.size(), std::uint64_t{0});
    in_pieces(count, pause, [&](std::size_t begin, std::size_t end) {
      for (std::size_t k = begin; k < end; ++k) {
        const std::uint64_t at = keys[k].hash() >> shift_;
        bits_[at >> 6] |= std::uint64_t{1} << (at & 63);
      }
    });
  }
  bool may_contain(std::uint64_t hash) const { return (bits_[hash >> shift_ >> 6] >> (hash >> shift_ & 63) & 1) != 0; }

 private:
  Buffer<std::uint64_t> bits_;
  int shift_;
};

}  // namespace crfasrnn
