"""The part of a region's C++ that is the same for all programs.

A tile of the index space, ``rows x cols`` elements, is processed at a time, in three stages: its
slices are copied, one after the other, from the inputs to small arrays, converted to the types
that are computed with; one vectorised loop over these arrays runs the program; the results are
copied to the outputs. So memory is read in long runs of one stream at a time whatever the number
of steps, the loop meets neither strides nor narrow types, no element is stored before all loads of
it, and one compiled kernel serves all sizes and layouts.

Every tile is padded to a multiple of ``LANES`` elements, so that all elements take the same
vectorised path and a value does not depend on where it stands in memory.
"""

from __future__ import annotations

LANES = 16

PRELUDE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// glibc has these for whole vectors, within 4 units in the last place, but tells the compiler so
// only under -ffast-math. A loop with a call that is not a vector's stays scalar as a whole.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define SNNFX_VECTOR __attribute__((__simd__("notinbranch")))
extern "C" {
SNNFX_VECTOR float expf(float) noexcept;
SNNFX_VECTOR double exp(double) noexcept;
SNNFX_VECTOR float logf(float) noexcept;
SNNFX_VECTOR double log(double) noexcept;
SNNFX_VECTOR float sinf(float) noexcept;
SNNFX_VECTOR double sin(double) noexcept;
SNNFX_VECTOR float cosf(float) noexcept;
SNNFX_VECTOR double cos(double) noexcept;
SNNFX_VECTOR float powf(float, float) noexcept;
SNNFX_VECTOR double pow(double, double) noexcept;
}
#endif

namespace {

constexpr int64_t LANES = 16;

struct bfloat16 { uint16_t bits; };
struct boolean { uint8_t byte; };

template <class T> inline T f_maximum(T a, T b) { return a != a ? a : (a > b ? a : b); }
template <class T> inline T f_minimum(T a, T b) { return a != a ? a : (a < b ? a : b); }
template <class T> inline T f_relu(T a) { return a != a ? a : (a > 0 ? a : 0); }
template <class T> inline T f_abs(T a) { return a < 0 ? -a : a; }
inline float f_abs(float a) { return __builtin_fabsf(a); }
inline double f_abs(double a) { return __builtin_fabs(a); }

#define SNNFX_FLOAT_FUNCTION(name, function)                       \
  inline float f_##name(float a) { return ::function##f(a); }      \
  inline double f_##name(double a) { return ::function(a); }
SNNFX_FLOAT_FUNCTION(sqrt, sqrt)
SNNFX_FLOAT_FUNCTION(floor, floor)
SNNFX_FLOAT_FUNCTION(ceil, ceil)
SNNFX_FLOAT_FUNCTION(trunc, trunc)
SNNFX_FLOAT_FUNCTION(round, nearbyint)
SNNFX_FLOAT_FUNCTION(exp, exp)
SNNFX_FLOAT_FUNCTION(log, log)
SNNFX_FLOAT_FUNCTION(log1p, log1p)
SNNFX_FLOAT_FUNCTION(tanh, tanh)
SNNFX_FLOAT_FUNCTION(erf, erf)
SNNFX_FLOAT_FUNCTION(sin, sin)
SNNFX_FLOAT_FUNCTION(cos, cos)
template <class T> inline T f_sigmoid(T a) { return 1 / (1 + f_exp(-a)); }

inline float f_power(float a, float e) { return ::powf(a, e); }
inline double f_power(double a, double e) { return ::pow(a, e); }

// The exponent is a literal, so that one of these returns is all that is left.
template <class T> inline T f_pow(T a, T e) {
  if (e == T(0)) return T(1);
  if (e == T(1)) return a;
  if (e == T(2)) return a * a;
  if (e == T(3)) return a * a * a;
  if (e == T(0.5)) return f_sqrt(a);
  if (e == T(-0.5)) return 1 / f_sqrt(a);
  if (e == T(-1)) return 1 / a;
  if (e == T(-2)) return 1 / (a * a);
  return f_power(a, e);
}

template <class T> inline T f_shift_left(T a, T b) {
  constexpr T width = 8 * sizeof(T);
  return b < 0 || b >= width ? 0 : a << (b & (width - 1));
}
template <class T> inline T f_shift_right(T a, T b) {
  constexpr T width = 8 * sizeof(T);
  return a >> (b < 0 || b >= width ? width - 1 : b);
}

inline float to_float(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline uint16_t to_bfloat16(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  const uint32_t rounded = (bits + (0x7FFFu + ((bits >> 16) & 1u))) >> 16;
  return uint16_t(a != a ? 0x7FC0u : rounded);
}
inline float f_round_bfloat16(float a) { return to_float(to_bfloat16(a)); }

template <class V, class M> struct Convert {
  static inline V load(M m) { return V(m); }
  static inline M store(V v) { return M(v); }
};
template <> struct Convert<float, bfloat16> {
  static inline float load(bfloat16 m) { return to_float(m.bits); }
  static inline bfloat16 store(float v) { return {to_bfloat16(v)}; }
};
template <class V> struct Convert<V, boolean> {
  static inline V load(boolean m) { return m.byte != 0; }
  static inline boolean store(V v) { return {uint8_t(v != 0)}; }
};

struct Span {
  int64_t rows, cols, row_stride, col_stride;
};

inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

template <class V, class M> void load_run(V* to, const M* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Convert<V, M>::load(from[i]);
}

template <class V> void fill(V* to, V value, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

template <class V, class M> void load_tile(V* to, const M* from, const Span& s) {
  const int64_t n = s.rows * s.cols;
  if (s.col_stride == 1 && (s.rows == 1 || s.row_stride == s.cols)) {
    load_run(to, from, n);
  } else if (s.col_stride == 0 && (s.rows == 1 || s.row_stride == 0)) {
    fill(to, Convert<V, M>::load(*from), n);
  } else {
    for (int64_t r = 0; r < s.rows; ++r) {
      const M* row = from + r * s.row_stride;
      V* line = to + r * s.cols;
      if (s.col_stride == 1) load_run(line, row, s.cols);
      else if (s.col_stride == 0) fill(line, Convert<V, M>::load(*row), s.cols);
      else
        for (int64_t c = 0; c < s.cols; ++c) line[c] = Convert<V, M>::load(row[c * s.col_stride]);
    }
  }
  for (int64_t i = n; i < padded(n); ++i) to[i] = V(0);
}

// The next tile mostly follows this one: its lines are fetched while it is loaded and computed.
template <class V, class M> void store_run(M* to, const V* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(M)) __builtin_prefetch(to + n + i, 1, 2);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = Convert<V, M>::store(from[i]);
}

template <class V, class M> void store_tile(M* to, const V* from, const Span& s) {
  if (s.col_stride == 1 && (s.rows == 1 || s.row_stride == s.cols)) {
    store_run(to, from, s.rows * s.cols);
    return;
  }
  for (int64_t r = 0; r < s.rows; ++r) {
    M* row = to + r * s.row_stride;
    const V* line = from + r * s.cols;
    if (s.col_stride == 1) store_run(row, line, s.cols);
    else
      for (int64_t c = 0; c < s.cols; ++c) row[c * s.col_stride] = Convert<V, M>::store(line[c]);
  }
}

template <class V> double sum_run(const V* from, int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += from[i];
  return total;
}

template <class V> void sum_tile(double* to, const V* from, const Span& s) {
  if (s.col_stride == 0 && s.row_stride == 0) {
    *to += sum_run(from, s.rows * s.cols);
    return;
  }
  for (int64_t r = 0; r < s.rows; ++r) {
    double* row = to + r * s.row_stride;
    const V* line = from + r * s.cols;
    if (s.col_stride == 0) *row += sum_run(line, s.cols);
    else
      for (int64_t c = 0; c < s.cols; ++c) row[c * s.col_stride] += line[c];
  }
}
"""

DRIVER = r"""
// geometry: number of dims (2 or more), tile rows, tile cols, chunks, elements of partial sums,
// then the size of each dim (and what `place` reads of windows). strides: for each buffer its step
// stride, then one for each dim.
// A chunk of tiles has its own partial sums, so they do not depend on the number of threads. For a
// sum, the strides lead into the partial sums, where its elements begin at the "step stride";
// offsets says where in the output each partial sum goes.
void run_tiles(char* const* pointers, const int64_t* geometry, const int64_t* strides,
               double* partial, Workspace& workspace, int64_t begin, int64_t end) {
  const int64_t dims = geometry[0], tile_rows = geometry[1], tile_cols = geometry[2];
  const int64_t* sizes = geometry + 5;
  const int64_t rows = sizes[dims - 2], cols = sizes[dims - 1];
  const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const int64_t col_tiles = (cols + tile_cols - 1) / tile_cols;
  Tile tile;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t col = index % col_tiles * tile_cols;
    const int64_t row = index / col_tiles % row_tiles * tile_rows;
    for (int b = 0; b < BUFFERS; ++b) {
      const int64_t* stride = strides + b * (dims + 1);
      int64_t outer = index / col_tiles / row_tiles;
      int64_t offset = row * stride[dims - 1] + col * stride[dims];
      for (int64_t d = dims - 3; d >= 0; --d) {
        offset += outer % sizes[d] * stride[d + 1];
        outer /= sizes[d];
      }
      tile.offset[b] = offset;
      tile.step[b] = stride[0];
      tile.span[b] = {rows - row < tile_rows ? rows - row : tile_rows,
                      cols - col < tile_cols ? cols - col : tile_cols, stride[dims - 1],
                      stride[dims]};
    }
    place(tile, geometry, index / col_tiles / row_tiles, row, col);
    load(pointers, tile, workspace);
    compute(workspace, padded(tile.span[0].rows * tile.span[0].cols) / LANES);
    store(pointers, tile, workspace, partial);
  }
}

}  // namespace

extern "C" void snnfx_region(void* const* pointers, const int64_t* geometry,
                             const int64_t* strides, const int64_t* offsets, int64_t tiles,
                             int64_t threads) {
  const int64_t chunks = geometry[3], sums = geometry[4];
  std::vector<double> partial(chunks * sums, 0.0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Workspace workspace;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      run_tiles(reinterpret_cast<char* const*>(pointers), geometry, strides,
                partial.data() + chunk * sums, workspace, tiles * chunk / chunks,
                tiles * (chunk + 1) / chunks);
  }
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < sums; ++i) partial[i] += partial[chunk * sums + i];
  finish(reinterpret_cast<char* const*>(pointers), strides, geometry[0] + 1, partial.data(), sums,
         offsets);
}
"""
