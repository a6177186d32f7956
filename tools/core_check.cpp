// A check of the core without Python: lattices of several shapes, their filter and its adjoint, and a mean
// field. Prints figures that must agree on every processor; used by tools/cross_compile.sh.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "image_points.hpp"
#include "lattice.hpp"
#include "mean_field.hpp"
#include "parallel.hpp"
#include "pixel_order.hpp"

namespace {

using crfasrnn::Lattice;

class Random {
 public:
  float next() {  // in [0, 1)
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<float>(state_ >> 40) / 16777216.0F;
  }

 private:
  std::uint64_t state_ = 42;
};

std::vector<float> numbers(std::size_t count, float scale, Random& random) {
  std::vector<float> values(count);
  for (float& value : values) value = scale * random.next();
  return values;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// <K a, b> = <a, K' b>, the same bits with two threads, and finite.
bool check_filter(std::size_t n, int d, std::size_t n_values) {
  Random random;
  const std::vector<float> features = numbers(n * static_cast<std::size_t>(d), 4.0F, random);
  const std::vector<float> a = numbers(n * n_values, 1.0F, random);
  const std::vector<float> b = numbers(n * n_values, 1.0F, random);
  std::vector<float> forward(a.size());
  std::vector<float> again(a.size());
  std::vector<float> backward(a.size());
  std::unique_ptr<Lattice> lattice;
  if (Lattice::build(features, n, d, lattice)) return false;
  lattice->filter(a, forward, n_values, false);
  lattice->filter(b, backward, n_values, true);
  const double one = dot(forward, b);
  const double other = dot(a, backward);
  const std::size_t n_vertices = lattice->n_vertices();
  crfasrnn::set_n_threads(2);
  if (Lattice::build(features, n, d, lattice)) return false;
  lattice->filter(a, again, n_values, false);
  crfasrnn::set_n_threads(1);
  std::printf("N %zu d %d V %zu: M %zu, <K a, b> %.5g\n", n, d, n_values, n_vertices, one);
  return again == forward && lattice->n_vertices() == n_vertices && std::abs(one - other) <= 1e-5 * std::abs(one);
}

bool check_mean_field(int n_labels) {
  const std::size_t side = 70;
  const std::size_t n = side * side;
  const auto labels = static_cast<std::size_t>(n_labels);
  Random random;
  const std::vector<std::size_t> space{side, side};
  std::vector<float> image = numbers(3 * n, 20.0F, random);
  for (std::size_t i = 0; i < image.size(); ++i) image[i] += i % side < side / 2 ? 0.0F : 150.0F;
  std::vector<std::uint32_t> order(n);
  crfasrnn::order_pixels(image, space, 12.0F, order);
  std::unique_ptr<Lattice> near;
  std::unique_ptr<Lattice> alike;
  if (Lattice::build(crfasrnn::PixelPoints({}, space, order, 3.0F, 1.0F), near)) return false;
  if (Lattice::build(crfasrnn::PixelPoints(image, space, order, 40.0F, 10.0F), alike)) return false;
  std::vector<float> factors[2] = {std::vector<float>(n), std::vector<float>(n)};
  near->row_sums(factors[0]);
  alike->row_sums(factors[1]);
  for (std::vector<float>& factor : factors) {
    for (float& value : factor) value = 1.0F / value;
  }
  const std::size_t n_vertices = alike->n_vertices();
  std::optional<crfasrnn::PixelOrder> pixel_order = crfasrnn::PixelOrder::of(order, space);
  if (!pixel_order) return false;
  const crfasrnn::MeanField field({std::move(near), {}, factors[0], true}, {std::move(alike), {}, factors[1], true},
                                  std::move(*pixel_order));
  const std::vector<float> unary = numbers(labels * n, 3.0F, random);
  std::vector<float> spatial(labels * labels);
  std::vector<float> bilateral(labels * labels);
  for (std::size_t l = 0; l < labels; ++l) {
    spatial[l * labels + l] = -3.0F;
    bilateral[l * labels + l] = -5.0F;
  }
  std::vector<float> refined(unary.size());
  if (!field.run(unary, n_labels, {spatial, bilateral, 1.0F, 1.0F}, 5, refined)) return false;
  const bool finite = std::all_of(refined.begin(), refined.end(), [](float x) { return std::isfinite(x); });
  std::printf("mean field, %d labels: M %zu, mean %.4g\n", n_labels, n_vertices,
              dot(refined, std::vector<float>(refined.size(), 1.0F / static_cast<float>(refined.size()))));
  return finite;
}

}  // namespace

int main() {
  crfasrnn::set_n_threads(1);
  bool good = true;
  for (const int d : {1, 2, 3, 5, 8, 16}) {
    for (const std::size_t n_values : {1, 3, 21, 70}) good = check_filter(d > 5 ? 300 : 5000, d, n_values) && good;
  }
  for (const int n_labels : {2, 5, 21}) good = check_mean_field(n_labels) && good;
  std::puts(good ? "all as expected" : "WRONG");
  return good ? 0 : 1;
}
