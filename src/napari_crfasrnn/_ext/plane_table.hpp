// The vertices of a lattice in the plane, numbered without hashing: there is a cell for each that may be.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "point_source.hpp"

namespace crfasrnn {

// Numbers for places, as they come. To forget them all takes no time: the cells bear the stamp of the time at
// which they were written.
class PlaneTable {
 public:
  static constexpr std::uint32_t absent = 0xFFFFFFFFU;

  PlaneTable(std::size_t n_cells, std::size_t most_places) : cells_(n_cells), places_(most_places + 1) {
    if (n_cells != 0) std::memset(static_cast<void*>(cells_.data()), 0, n_cells * sizeof(Cell));
  }

  std::size_t size() const { return size_; }
  const std::uint32_t* keys() const { return places_.data(); }

  void forget() {
    ++stamp_;
    size_ = 0;
  }
  std::uint32_t find(std::uint32_t place) const {
    const Cell cell = cells_[place];
    return cell.stamp == stamp_ ? cell.number : absent;
  }
  void find_or_add(const std::uint32_t* wanted, std::size_t count, std::uint32_t* numbers) {
    for (std::size_t k = 0; k < count; ++k) {
      // No branch: which places are new, nobody can predict.
      Cell& cell = cells_[wanted[k]];
      const bool is_new = cell.stamp != stamp_;
      numbers[k] = is_new ? static_cast<std::uint32_t>(size_) : cell.number;
      cell = {stamp_, numbers[k]};
      places_[size_] = wanted[k];
      size_ += static_cast<std::size_t>(is_new);
    }
  }

 private:
  struct Cell {
    std::uint32_t stamp;  // 0: never written
    std::uint32_t number;
  };
  Buffer<Cell> cells_;
  Buffer<std::uint32_t> places_;
  std::size_t size_ = 0;
  std::uint32_t stamp_ = 1;
};

// Where each vertex of a plane has its place: row x_2, column (x_1 - x_0) / 3. Columns run along the first
// feature and rows along the second, so that the box of an image is that of its vertices. The coordinates of a
// vertex are alike modulo 3, so columns are integers, and a step along an axis is one addition.
class PlaneKeys {
 public:
  using Key = std::uint32_t;
  using Table = PlaneTable;
  static constexpr int n_dims = 2;

  // A table that goes back to where the next run finds it.
  class RunTable {
   public:
    RunTable(const PlaneKeys& owner, std::unique_ptr<PlaneTable> table) : owner_(owner), table_(std::move(table)) {}
    RunTable(const RunTable&) = delete;
    RunTable& operator=(const RunTable&) = delete;
    ~RunTable() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.spare_.push_back(std::move(table_));
    }
    std::size_t size() const { return table_->size(); }
    const Key* keys() const { return table_->keys(); }
    void find_or_add(const Key* wanted, std::size_t count, std::uint32_t* numbers) {
      table_->find_or_add(wanted, count, numbers);
    }

   private:
    const PlaneKeys& owner_;
    std::unique_ptr<PlaneTable> table_;
  };

  // `scale` as in elevation; the box is that of the features. Runs have up to `run_points` points.
  PlaneKeys(const FeatureBox& box, const float* scale, std::size_t run_points) : run_points_(run_points) {
    // x_2 = -2 c_2 and x_1 - x_0 = -2 c_1 for the scaled features c, up to what rounding to a vertex and
    // walking from corner to corner and to a neighbour adds.
    constexpr int margin = 4 * (n_dims + 1);
    const auto row = [&](float f) { return -2.0 * static_cast<double>(f) * static_cast<double>(scale[1]); };
    const auto column = [&](float f) { return -2.0 * static_cast<double>(f) * static_cast<double>(scale[0]) / 3.0; };
    low_row_ = static_cast<std::int32_t>(std::floor(row(box.high[1]))) - margin;
    low_column_ = static_cast<std::int32_t>(std::floor(column(box.high[0]))) - margin;
    n_rows_ = static_cast<std::size_t>(static_cast<std::int32_t>(std::ceil(row(box.low[1]))) + margin - low_row_ + 1);
    n_columns_ =
        static_cast<std::size_t>(static_cast<std::int32_t>(std::ceil(column(box.low[0]))) + margin - low_column_ + 1);
  }

  std::size_t n_cells() const { return n_rows_ * n_columns_; }

  // The corners of remainder 0, of all lanes.
  void origins(const SimplexBlock& simplices, Key* keys) const {
    const auto width = static_cast<std::uint32_t>(n_columns_);
    for (int l = 0; l < simplex_lanes; ++l) {
      const auto row = static_cast<std::uint32_t>(simplices.origin[2][l] - low_row_);
      const std::int32_t column = (simplices.origin[1][l] - simplices.origin[0][l]) / 3;
      keys[l] = row * width + static_cast<std::uint32_t>(column - low_column_);
    }
  }
  // One step along axis j: +1 in every coordinate but -2 in coordinate j.
  Key step(int j) const {
    const auto width = static_cast<std::uint32_t>(n_columns_);
    return j == 0 ? width + 1 : j == 1 ? width - 1 : 0 - 2 * width;
  }
  RunTable run_table(std::size_t) const {
    std::unique_ptr<PlaneTable> table;
    {
      const std::lock_guard lock(mutex_);
      if (!spare_.empty()) {
        table = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    if (table == nullptr) table = std::make_unique<PlaneTable>(n_cells(), run_points_ * (n_dims + 1));
    table->forget();
    return {*this, std::move(table)};
  }
  // The table of all runs; there will be no more of them.
  Table joint_table(std::size_t n_found) const {
    spare_.clear();
    return {n_cells(), n_found};
  }

 private:
  std::size_t run_points_;
  std::int32_t low_row_ = 0;
  std::int32_t low_column_ = 0;
  std::size_t n_rows_ = 0;
  std::size_t n_columns_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<PlaneTable>> spare_;
};

}  // namespace crfasrnn
