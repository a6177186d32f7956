// The inner loops, one table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crfasrnn {

inline constexpr int max_dims = 16;
inline constexpr int simplex_lanes = 16;

// Features of up to 256 points, one dimension behind the other. A block that is not full repeats its
// first point.
inline constexpr std::size_t block_points = 256;
struct FeatureBlock {
  alignas(64) float of[max_dims][block_points];
};

// One contribution of a point to a vertex.
struct SplatEntry {
  std::uint32_t point;
  float weight;
};

// The entries of one vertex, those in [first, last).
struct ScalarSum {
  std::uint32_t vertex;
  std::uint32_t first;
  std::uint32_t last;
};

// What the points of a tile give to the vertices around them: sum after sum, of so many entries each.
struct TileEntries {
  const std::uint16_t* points;   // of each entry, counted in the tile
  const float* weights;          // of each entry
  const std::uint16_t* lengths;  // [n_sums]
  std::size_t n_sums;
};

// The simplices around up to 16 points, one point per lane. Only the first d + 1 rows are used.
struct SimplexBlock {
  std::int32_t origin[max_dims + 1][simplex_lanes];     // remainder-0 vertex
  std::int32_t order[max_dims + 1][simplex_lanes];      // order[r] = the coordinate of rank r
  float barycentric[max_dims + 1][simplex_lanes];       // weight of the vertex with remainder k
};

// The box around all elevated points, and whether all of them lie in a range that can be keyed.
struct Bounds {
  float low[max_dims + 1];
  float high[max_dims + 1];
  bool usable;
};

// Rows of `stride` floats, of which a kernel reads `width` >= n_values at a time: what follows a row
// is read and thrown away. From row `n_safe` on that would leave the array, so those rows are
// repeated in `tail`, with room behind them.
struct ValueRows {
  const float* rows;
  std::size_t stride;
  std::uint32_t n_safe;
  const float* tail;
  std::size_t tail_stride;
};

// What a linear map does to the label axis of a row, before the blur (the two commute).
struct LabelMap {
  enum class Kind { identity, diagonal, full } kind = Kind::identity;
  const float* weights = nullptr;  // diagonal: [width]; full: [n_labels, width], one row per input label
  int n_labels = 0;
};

// A marginal in 16 bits, from 0 to 65535 (see shares.hpp).
using Share = std::uint16_t;
inline constexpr float whole_share = 65535.0F;

// How the mean field reads one kernel's message at a point.
struct Message {
  const std::uint32_t* vertex_of;  // [N, n_corners]
  const float* weight_of;          // [N, n_corners]
  const float* vertices;           // [M, width]
  const float* factor;             // [N], or null for 1
  float scale;
  int n_corners;
};

// Where the points of a mean field lie in the planar arrays [L, N] that come in and go out.
struct Planes {
  std::size_t n_points;
  int n_labels;
  const std::uint32_t* point_of;  // [N], or null when pixel i is point i

  std::size_t point_at(std::size_t pixel) const { return point_of == nullptr ? pixel : point_of[pixel]; }
};

// A part of an image whose pixels are consecutive points, in some order.
struct Square {
  std::size_t first_point;
  std::size_t first_pixel;
  std::size_t rows;
  std::size_t columns;
  std::size_t stride;  // pixels from a row to the next

  std::size_t n_points() const { return rows * columns; }
};

// What follows the sum of unary and messages.
enum class Finish {
  nothing,
  softmax,
  softmax_of_bounded,  // no exponential can overflow, nor all of a pixel's vanish
};

struct TrainingKernels;

struct Kernels {
  const char* name;

  // Elevated coordinates of a block of points; merges into `bounds`.
  void (*measure)(const FeatureBlock& features, int d, const float* scale, float limit, Bounds& bounds);
  // Simplices of the 16 points from `first` of a block.
  void (*simplices)(const FeatureBlock& features, std::size_t first, int d, const float* scale, SimplexBlock& block);

  // vertices[m] = sum of the weights of the entries of vertex m, for m in [begin, end): what splatting
  // ones gives, bit for bit.
  void (*splat_ones)(const std::uint32_t* start, const SplatEntry* entries, float* vertices, std::size_t begin,
                     std::size_t end);
  // vertices[m] = sum of weight * value over the entries of vertex m, for m in [begin, end).
  void (*splat)(int width, const std::uint32_t* start, const SplatEntry* entries, const ValueRows& values,
                float* vertices, std::size_t begin, std::size_t end);
  // The same for marginals in shares, rows of `width`, in units of 1 / whole_share.
  void (*splat_shares)(int width, const std::uint32_t* start, const SplatEntry* entries, const Share* marginals,
                       float* vertices, std::size_t begin, std::size_t end);
  // sums[s] = sum of weight * value over the entries of sum s; `values` are rows of the tile's points.
  void (*splat_tile)(int width, const TileEntries& tile, const float* values, float* sums);
  // vertices[m] = sum of the rows `sums_of` lists for vertex m, for m in [begin, end).
  void (*add_up)(int width, const std::uint32_t* start, const std::uint32_t* sums_of, const float* sums,
                 float* vertices, std::size_t begin, std::size_t end);
  // As splat for single values, for the sums in [begin, end).
  void (*splat_scalars)(const ScalarSum* sums, const SplatEntry* entries, const float* values, float* vertices,
                        std::size_t begin, std::size_t end);
  // v += (previous + next) / 2 along the chains in [begin, end); both must be ends of chains.
  void (*blur)(int width, const std::uint32_t* chain, float* vertices, std::size_t begin, std::size_t end);
  // out[p] = scale * sum over the simplex of point p, for p in [begin, end).
  void (*slice)(int width, const std::uint32_t* vertex_of, const float* weight_of, int n_corners, float scale,
                const float* vertices, float* out, std::size_t out_stride, int n_values, std::size_t begin,
                std::size_t end);

  // to[m] = map * from[m], for m in [begin, end); the two may be the same array.
  void (*map_labels)(int width, const LabelMap& map, const float* from, float* to, std::size_t begin,
                     std::size_t end);
  // rows[p] = scale * unary of point p - shift[p], padded with very low logits, such that its largest is 0;
  // marginals[p - first point of the square] = softmax of that; for the points of a square. Returns whether all logits
  // were finite.
  bool (*pack)(int width, const Planes& planes, const Square& square, const float* unary, float scale, float* rows,
               float* shift, float* marginals);
  bool (*pack_shares)(int width, const Planes& planes, const Square& square, const float* unary, float scale,
                      float* rows, float* shift, Share* marginals);
  // out[p - begin] = unary[p] + the two messages, or softmax of that; rows of `width`.
  void (*update)(int width, const float* unary, const Message& first, const Message& second, Finish finish,
                 float* out, std::size_t begin, std::size_t end);
  // marginals[p - begin] = softmax of unary[p] + the two messages.
  void (*update_shares)(int width, const float* unary, const Message& first, const Message& second, bool bounded,
                        Share* marginals, std::size_t begin, std::size_t end);
  // out [L, N] = scale * (rows[p - first point of the square] + shift[p]) for the pixels of a square.
  void (*unpack)(int width, const Planes& planes, const Square& square, const float* rows, const float* shift,
                 float scale, float* out);
  // values[p] = 1 / (1 + exp(-values[p]))
  void (*sigmoid)(float* values, std::size_t begin, std::size_t end);

  const TrainingKernels* training;  // what gradients need, see kernels_training.hpp
};

// The mark of a chain's first node; the other bits are the vertex.
inline constexpr std::uint32_t chain_head = 0x80000000U;

// The row widths the kernels are compiled for; `padded_width` gives the smallest that fits.
inline constexpr int max_width = 64;
constexpr int padded_width(std::size_t n_values) {
  return n_values <= 1 ? 1 : n_values <= 4 ? 4 : n_values >= 64 ? 64 : static_cast<int>((n_values + 7) / 8 * 8);
}

// The table in use: the best this processor has, unless `use_kernels` chose another.
const Kernels& kernels();
// Names of the tables that this processor can run, best first.
const char* const* kernel_names();
bool use_kernels(const char* name);

}  // namespace crfasrnn
