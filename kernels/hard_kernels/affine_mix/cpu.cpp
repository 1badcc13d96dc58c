// affine_mix on a CPU: forward, and the gradients of theta, weight and image.
//
// Each source image is first unpacked into a scratch picture of four floats per pixel with a frame
// of zeros around it. The warp then reads its four taps as plain vectors, whatever the data type,
// the layout and the number of channels were, and never has to ask whether a tap lies inside.
// One thread works on one image at a time, so nothing is atomic and every sum has a fixed order.
//
// The file includes itself: once per instruction set, between HARD_KERNELS_LEVEL and the end. The
// set is chosen when the library runs, so that one build serves every processor.
//
// Letters: N images given, M made, G mixed into one, C <= 4 channels, H rows, W columns,
// P x Q patches.

#ifndef HARD_KERNELS_LEVEL

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <numeric>
#include <vector>

namespace {

typedef float f4 __attribute__((vector_size(16), may_alias));
typedef float f8 __attribute__((vector_size(32), may_alias));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef int64_t l2 __attribute__((vector_size(16)));
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint8_t b16 __attribute__((vector_size(16)));

enum Type { kUint8 = 0, kFloat = 1, kBfloat = 2 };
enum Padding { kZeros = 0, kBorder = 1, kReflection = 2 };

struct bfloat {
  uint16_t bits;
};

// A batch of pictures: dense, the channels of a pixel side by side (packed) or in planes.
struct Pictures {
  void* data;
  int64_t type;
  int64_t is_packed;
};

// What cpu.py fills in; null pointers stand for None, or for a gradient that is not needed.
struct Problem {
  Pictures image, out, grad, grad_image;
  const float *theta, *weight;
  const int64_t* index;
  float *grad_theta, *grad_weight;
  int64_t N, M, G, C, H, W, P, Q;
  int64_t padding, num_threads;
  int64_t is_plain;  // Whether to keep to the instructions that every processor has.
};

// Frame of the scratch picture: a coordinate is held in [-2, W], and its right tap may be W + 1.
constexpr int kFrame = 2;
constexpr int kLanes = 4;

// [num_patches + 1]: the first row or column of each patch, and the end.
std::vector<int64_t> patch_starts(int64_t num_patches, int64_t size) {
  std::vector<int64_t> starts(num_patches + 1);
  for (int64_t patch = 0; patch <= num_patches; ++patch) {
    starts[patch] = (patch * size + num_patches - 1) / num_patches;
  }
  return starts;
}

// Pixels are warped in pairs, so a row has room for an even number of them.
int64_t even(int64_t width) { return width + width % 2; }

// Where one row of pixels comes from: the top left tap, the way to the next one, and the slope.
struct Place {
  const int32_t* offset;
  const float *fx, *fy, *slope_x, *slope_y, *column;
};

// Memory of one thread. Vectors are zero when made: the frame of `source` stays so.
struct Scratch {
  std::vector<float> source, target, mixed, row, other_row, value, row_weight;
  std::vector<float> fx, fy, slope_x, slope_y, column;
  std::vector<int32_t> offset;
  std::vector<int64_t> row_starts, column_starts;
  int64_t filled = -1;

  Scratch(const Problem& p, bool is_backward)
      : row_starts(patch_starts(p.P, p.H)), column_starts(patch_starts(p.Q, p.W)) {
    const size_t framed = (p.H + 2 * kFrame) * (p.W + 2 * kFrame) * kLanes + kLanes;
    const size_t padded = p.W + 8;
    for (auto* each : {&row, &other_row, &value}) each->resize(padded * kLanes);
    if (p.theta) source.resize(framed);
    if (p.theta && !is_backward && p.G > 1) mixed.resize(p.H * even(p.W) * kLanes);
    if (is_backward && p.grad_image.data) target.resize(framed);
    row_weight.resize(p.theta ? padded : p.G * padded * kLanes);
    for (auto* each : {&fx, &fy, &slope_x, &slope_y, &column}) each->resize(padded);
    offset.resize(padded);
    for (int64_t w = 0; w < p.W; ++w) column[w] = w + 0.5f - 0.5f * p.W;
  }

  Place place() const {
    return {offset.data(), fx.data(), fy.data(), slope_x.data(), slope_y.data(), column.data()};
  }
};

}  // namespace

#define HARD_KERNELS_INLINE inline __attribute__((always_inline))
#define HARD_KERNELS_APART __attribute__((noinline))

#define HARD_KERNELS_LEVEL baseline
#include "cpu.cpp"
#undef HARD_KERNELS_LEVEL

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define HARD_KERNELS_LEVEL avx2
#include "cpu.cpp"
#undef HARD_KERNELS_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace {

int run(const Problem& p, bool is_backward) {
  try {
#if defined(__x86_64__)
    if (!p.is_plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      is_backward ? avx2::backward(p) : avx2::forward(p);
      return 0;
    }
#endif
    is_backward ? baseline::backward(p) : baseline::forward(p);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // namespace

// cpu.py compares it with its own, so that a library of another version is not called.
extern "C" int64_t hard_kernels_affine_mix_layout() { return 1000 * sizeof(Problem) + 1; }
extern "C" int hard_kernels_affine_mix_forward(const Problem* p) { return run(*p, false); }
extern "C" int hard_kernels_affine_mix_backward(const Problem* p) { return run(*p, true); }

#else  // One instruction set.

namespace {
namespace HARD_KERNELS_LEVEL {

template <typename V>
HARD_KERNELS_INLINE V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V>
HARD_KERNELS_INLINE void store(void* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// ---- Four values of a picture as floats, and back.

HARD_KERNELS_INLINE f4 widen(const float* from) { return load<f4>(from); }
HARD_KERNELS_INLINE f4 widen(const uint8_t* from) {
  const int32_t four = load<int32_t>(from);
  const b16 bytes = (b16)i4{four, 0, 0, 0}, zero = {};
  const b16 wide = __builtin_shufflevector(
      bytes, zero, 0, 16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16);
  return __builtin_convertvector((i4)wide, f4);
}
HARD_KERNELS_INLINE f4 widen(const bfloat* from) {
  // The upper half of a float is a bfloat.
  const h8 halves = (h8)l2{load<int64_t>(from), 0}, zero = {};
  return (f4)__builtin_shufflevector(zero, halves, 0, 8, 0, 9, 0, 10, 0, 11);
}

HARD_KERNELS_INLINE void narrow(float* to, f4 value) { store(to, value); }
HARD_KERNELS_INLINE void narrow(bfloat* to, f4 value) {
  const i4 bits = (i4)value, is_nan = value != value;
  const i4 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const h8 halves = (h8)((rounded & ~is_nan) | (0x7fc00000 & is_nan));
  const h8 kept = __builtin_shufflevector(halves, halves, 1, 3, 5, 7, 1, 3, 5, 7);
  store(to, ((l2)kept)[0]);
}

// Copies one row of packed pixels into `row`, four lanes each. Lanes from kC on hold anything.
template <int kC, typename T>
HARD_KERNELS_APART void unpack_pixels(const T* line, int64_t width, f4* row) {
  int64_t w = 0;
  // Four lanes are read, so the last pixels of the row, which has kC, are read apart.
  for (; w + 8 <= width; w += 4) {
    for (int i = 0; i < 4; ++i) row[w + i] = widen(line + (w + i) * kC);
  }
  for (; w < width; ++w) {
    T last[kLanes] = {};
    std::memcpy(last, line + w * kC, kC * sizeof(T));
    row[w] = widen(last);
  }
}

template <typename T>
void unpack_planes(const T* const line[kLanes], int64_t width, f4* row) {
  int64_t w = 0;
  for (; w + kLanes <= width; w += kLanes) {
    const f4 a = widen(line[0] + w), b = widen(line[1] + w);
    const f4 c = widen(line[2] + w), d = widen(line[3] + w);
    const f4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const f4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const f4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const f4 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    row[w] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    row[w + 1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    row[w + 2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    row[w + 3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
  }
  for (; w < width; ++w) {
    const T last[kLanes] = {line[0][w], line[1][w], line[2][w], line[3][w]};
    row[w] = widen(last);
  }
}

template <typename T>
void unpack_row(const Problem& p, const Pictures& from, int64_t n, int64_t h, f4* row) {
  const int64_t plane = p.H * p.W;
  const T* picture = static_cast<const T*>(from.data) + n * p.C * plane;
  const T* packed = picture + h * p.W * p.C;
  if (!from.is_packed) {
    const T* line[kLanes];
    for (int c = 0; c < kLanes; ++c) line[c] = picture + (c < p.C ? c : 0) * plane + h * p.W;
    unpack_planes(line, p.W, row);
  } else if (p.C == 1) {
    unpack_pixels<1>(packed, p.W, row);
  } else if (p.C == 2) {
    unpack_pixels<2>(packed, p.W, row);
  } else if (p.C == 3) {
    unpack_pixels<3>(packed, p.W, row);
  } else {
    unpack_pixels<4>(packed, p.W, row);
  }
}

void unpack(const Problem& p, const Pictures& from, int64_t n, int64_t h, f4* row) {
  if (from.type == kFloat) unpack_row<float>(p, from, n, h, row);
  if (from.type == kBfloat) unpack_row<bfloat>(p, from, n, h, row);
  if (from.type == kUint8) unpack_row<uint8_t>(p, from, n, h, row);
}

// Writes one row of packed pixels. Four lanes are stored, and the next pixel overwrites those that
// were too many.
template <int kC, typename T>
HARD_KERNELS_APART void pack_pixels(const f4* row, int64_t width, T* line) {
  int64_t w = 0;
  for (; w + 8 <= width; w += 4) {
    for (int i = 0; i < 4; ++i) narrow(line + (w + i) * kC, row[w + i]);
  }
  for (; w < width; ++w) {
    T last[kLanes];
    narrow(last, row[w]);
    std::memcpy(line + w * kC, last, kC * sizeof(T));
  }
}

template <typename T>
void pack_row(const Problem& p, const Pictures& to, int64_t m, int64_t h, const f4* row) {
  T* line = static_cast<T*>(to.data) + (m * p.H + h) * p.W * p.C;
  if (p.C == 1) pack_pixels<1>(row, p.W, line);
  if (p.C == 2) pack_pixels<2>(row, p.W, line);
  if (p.C == 3) pack_pixels<3>(row, p.W, line);
  if (p.C == 4) pack_pixels<4>(row, p.W, line);
}

void pack(const Problem& p, const Pictures& to, int64_t m, int64_t h, const f4* row) {
  if (to.type == kFloat) pack_row<float>(p, to, m, h, row);
  if (to.type == kBfloat) pack_row<bfloat>(p, to, m, h, row);
}

// Floats per pixel in which a row is read where no tap has to be found: packed ones as they lie.
int64_t row_lanes(const Problem& p, const Pictures& from) {
  return from.is_packed ? p.C : kLanes;
}

template <typename T>
void widen_line(const T* line, int64_t num, float* row) {
  int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) store(row + i, widen(line + i));
  T last[kLanes] = {};
  std::memcpy(last, line + i, (num - i) * sizeof(T));
  store(row + i, widen(last));
}

// A row as floats: where it lies if it can be read there, else copied to `row`.
const float* read_row(
    const Problem& p, const Pictures& from, int64_t n, int64_t h, int64_t lanes, float* row) {
  const int64_t at = (n * p.H + h) * p.W * p.C, num = p.W * p.C;
  if (lanes != p.C || !from.is_packed) {
    unpack(p, from, n, h, reinterpret_cast<f4*>(row));
  } else if (from.type == kFloat) {
    return static_cast<const float*>(from.data) + at;
  } else if (from.type == kBfloat) {
    widen_line(static_cast<const bfloat*>(from.data) + at, num, row);
  } else {
    widen_line(static_cast<const uint8_t*>(from.data) + at, num, row);
  }
  return row;
}

void write_row(
    const Problem& p, const Pictures& to, int64_t m, int64_t h, int64_t lanes, const float* row) {
  if (lanes != p.C) {
    pack(p, to, m, h, reinterpret_cast<const f4*>(row));
    return;
  }
  const int64_t at = (m * p.H + h) * p.W * p.C, num = p.W * p.C;
  if (to.type == kFloat) {
    std::copy(row, row + num, static_cast<float*>(to.data) + at);
    return;
  }
  bfloat* line = static_cast<bfloat*>(to.data) + at;
  int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) narrow(line + i, load<f4>(row + i));
  bfloat last[kLanes];
  narrow(last, load<f4>(row + i));
  std::memcpy(line + i, last, (num - i) * sizeof(bfloat));
}

HARD_KERNELS_INLINE int64_t line_floats(const Problem& p) { return (p.W + 2 * kFrame) * kLanes; }

HARD_KERNELS_INLINE float* inside(const Problem& p, std::vector<float>& framed) {
  return framed.data() + kFrame * line_floats(p) + kFrame * kLanes;
}

void fill(const Problem& p, Scratch& s, int64_t n) {
  if (s.filled == n) return;
  for (int64_t h = 0; h < p.H; ++h) {
    unpack(p, p.image, n, h, reinterpret_cast<f4*>(inside(p, s.source) + h * line_floats(p)));
  }
  s.filled = n;
}

// ---- Where a row of pixels comes from.

// Moves coordinates into the framed picture, whose first pixel is at kFrame; none is negative then.
// `slope` is the derivative of what they become. NaN fails every comparison and lands inside too.
template <int kPadding>
HARD_KERNELS_INLINE f8 settle(f8 x, float size, f8& slope) {
  const f8 zero = {}, one = zero + 1.0f;
  if (kPadding == kZeros) {
    const f8 end = zero + (size + kFrame);
    x = x > zero ? x : zero;
    return x < end ? x : end;
  }
  const f8 first = zero + kFrame, last = first + (size - 1.0f);
  slope = one;
  if (kPadding == kReflection) {
    // Mirrored at half a pixel outside as often as it takes; further than 1e9 is anywhere.
    const f8 from_edge = x - (kFrame - 0.5f), far = zero + 1e9f;
    f8 distance = from_edge < zero ? -from_edge : from_edge;
    distance = distance < far ? distance : far;
    const i8 turns = __builtin_convertvector(distance / size, i8);
    const f8 rest = distance - __builtin_convertvector(turns, f8) * size;
    const i8 is_odd = (turns & 1) != 0;
    slope = ((from_edge < zero) ^ is_odd) ? -one : one;
    x = (is_odd ? size - rest : rest) + (kFrame - 0.5f);
  }
  slope = ((x > first) & (x < last)) ? slope : zero;
  x = x > first ? x : first;
  return x < last ? x : last;
}

// Fills the scratch's offset, fx, fy (and slopes) for output row h under one matrix.
template <int kPadding>
void locate_row(const Problem& p, const float* theta, int64_t h, Scratch& s) {
  const float width = p.W, height = p.H, row = h + 0.5f - 0.5f * height;
  // In pixels, so that the identity lands on whole numbers exactly.
  const float x_step = theta[0], y_step = theta[3] * (height / width);
  const float to_frame = kFrame - 0.5f;
  const float x_shift = theta[2] * 0.5f * width + (0.5f * width + to_frame);
  const float y_shift = theta[5] * 0.5f * height + (0.5f * height + to_frame);
  const float x_start = theta[1] * (width / height) * row + x_shift;
  const float y_start = theta[4] * row + y_shift;
  const int32_t line = line_floats(p);
  const float* column = s.column.data();
  float *fx = s.fx.data(), *fy = s.fy.data();
  float *slopes_x = s.slope_x.data(), *slopes_y = s.slope_y.data();
  int32_t* offset = s.offset.data();
  const int64_t end = p.W;
  for (int64_t w = 0; w < end; w += 8) {
    f8 slope_x, slope_y;
    const f8 x = settle<kPadding>(load<f8>(column + w) * x_step + x_start, width, slope_x);
    const f8 y = settle<kPadding>(load<f8>(column + w) * y_step + y_start, height, slope_y);
    const i8 left = __builtin_convertvector(x, i8), top = __builtin_convertvector(y, i8);
    store(fx + w, x - __builtin_convertvector(left, f8));
    store(fy + w, y - __builtin_convertvector(top, f8));
    store(offset + w, top * line + left * kLanes);
    if (kPadding != kZeros) {
      store(slopes_x + w, slope_x);
      store(slopes_y + w, slope_y);
    }
  }
  // The addresses are inside whatever theta held; its NaNs go on to the values.
  if (std::isnan(x_step + x_start)) std::fill(s.fx.begin(), s.fx.end(), NAN);
  if (std::isnan(y_step + y_start)) std::fill(s.fy.begin(), s.fy.end(), NAN);
}

HARD_KERNELS_INLINE void locate(const Problem& p, const float* theta, int64_t h, Scratch& s) {
  if (p.padding == kZeros) locate_row<kZeros>(p, theta, h, s);
  if (p.padding == kBorder) locate_row<kBorder>(p, theta, h, s);
  if (p.padding == kReflection) locate_row<kReflection>(p, theta, h, s);
}

// ---- One or two pixels in a vector.

template <int kPixels>
struct Lanes;

template <>
struct Lanes<1> {
  typedef f4 Vector;
  static HARD_KERNELS_INLINE f4 tap(const float* from, const int32_t* offset) {
    return load<f4>(from + offset[0]);
  }
  static HARD_KERNELS_INLINE f4 spread(const float* each) {
    return f4{each[0], each[0], each[0], each[0]};
  }
  static HARD_KERNELS_INLINE f4 total(f4 value) { return value; }
};

template <>
struct Lanes<2> {
  typedef f8 Vector;
  static HARD_KERNELS_INLINE f8 tap(const float* from, const int32_t* offset) {
    const f4 first = load<f4>(from + offset[0]), second = load<f4>(from + offset[1]);
    return __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  static HARD_KERNELS_INLINE f8 spread(const float* each) {
    const f4 both = load<f4>(each);
    return __builtin_shufflevector(both, both, 0, 0, 0, 0, 1, 1, 1, 1);
  }
  static HARD_KERNELS_INLINE f4 total(f8 value) {
    return __builtin_shufflevector(value, value, 0, 1, 2, 3) +
           __builtin_shufflevector(value, value, 4, 5, 6, 7);
  }
};

// The four pixels around each place.
template <typename L>
struct Taps {
  typename L::Vector top_left, top_right, low_left, low_right;
  HARD_KERNELS_INLINE Taps(const float* source, int64_t line, const int32_t* offset)
      : top_left(L::tap(source, offset)),
        top_right(L::tap(source + kLanes, offset)),
        low_left(L::tap(source + line, offset)),
        low_right(L::tap(source + line + kLanes, offset)) {}
};

// ---- Forward.

template <bool kWeighted, bool kAdds>
HARD_KERNELS_APART void warp_row(
    const float* source, int64_t line, const Place& at, const float* weight, int64_t width,
    f4* mixed) {
  typedef Lanes<2> L;
  // An odd last pixel is computed with a neighbour that nobody reads.
  for (int64_t w = 0; w < width; w += 2) {
    const Taps<L> taps(source, line, at.offset + w);
    const f8 y = L::spread(at.fy + w);
    const f8 left = taps.top_left + y * (taps.low_left - taps.top_left);
    const f8 right = taps.top_right + y * (taps.low_right - taps.top_right);
    f8 value = left + L::spread(at.fx + w) * (right - left);
    if (kWeighted) value *= L::spread(weight + w);
    if (kAdds) value += load<f8>(mixed + w);
    store(mixed + w, value);
  }
}

// The weight of each lane in the rows of one line of patches.
void spread_weights(
    const Problem& p, const Scratch& s, int64_t item, int64_t patch, int64_t lanes, float* spread) {
  const float* patches = p.weight + (item * p.P + patch) * p.Q;
  const auto& starts = s.column_starts;
  for (int64_t q = 0; q < p.Q; ++q) {
    std::fill(spread + starts[q] * lanes, spread + starts[q + 1] * lanes, patches[q]);
  }
}

// For whole numbers up to 255 exactly what a division gives, at a fraction of its time.
void divide_row(float* row, int64_t num, float divisor) {
  const float share = 1.0f / divisor;
  for (int64_t i = 0; i < num; ++i) {
    const float value = row[i] * share;
    row[i] = value + (row[i] - value * divisor) * share;
  }
}

void warp_rows(const Problem& p, Scratch& s, int64_t m, int64_t g, int64_t from, int64_t to) {
  const float* weight = p.weight ? s.row_weight.data() : nullptr;
  const float* source = s.source.data();
  const int64_t line = line_floats(p);
  for (int64_t h = from; h < to; ++h) {
    f4* row = reinterpret_cast<f4*>(s.row.data());
    f4* mixed = p.G > 1 ? reinterpret_cast<f4*>(s.mixed.data()) + h * even(p.W) : row;
    locate(p, p.theta + (m * p.G + g) * 6, h, s);
    const Place at = s.place();
    if (weight && g) warp_row<true, true>(source, line, at, weight, p.W, mixed);
    if (weight && !g) warp_row<true, false>(source, line, at, weight, p.W, mixed);
    if (!weight) warp_row<false, false>(source, line, at, weight, p.W, mixed);
    if (g != p.G - 1) continue;
    // Whole numbers were mixed; one division at the end gives back what image / 255 gives.
    if (p.image.type == kUint8) divide_row(reinterpret_cast<float*>(mixed), p.W * kLanes, 255.0f);
    pack(p, p.out, m, h, mixed);
  }
}

void warp_image(const Problem& p, Scratch& s, int64_t m) {
  for (int64_t g = 0; g < p.G; ++g) {
    const int64_t item = m * p.G + g;
    fill(p, s, p.index ? p.index[item] : item);
    for (int64_t patch = 0; patch < p.P; ++patch) {
      if (p.weight) spread_weights(p, s, item, patch, 1, s.row_weight.data());
      warp_rows(p, s, m, g, s.row_starts[patch], s.row_starts[patch + 1]);
    }
  }
}

// Without a warp a row is a row of numbers, wherever its channels lie.
void copy_image(const Problem& p, Scratch& s, int64_t m) {
  const int64_t lanes = row_lanes(p, p.image), num = p.W * lanes, stride = (p.W + 8) * kLanes;
  for (int64_t patch = 0; patch < p.P; ++patch) {
    for (int64_t g = 0; p.weight && g < p.G; ++g) {
      spread_weights(p, s, m * p.G + g, patch, lanes, s.row_weight.data() + g * stride);
    }
    for (int64_t h = s.row_starts[patch]; h < s.row_starts[patch + 1]; ++h) {
      float* mixed = s.row.data();
      for (int64_t g = 0; g < p.G; ++g) {
        const int64_t item = m * p.G + g, n = p.index ? p.index[item] : item;
        const float* from = read_row(p, p.image, n, h, lanes, s.other_row.data());
        const float* weight = s.row_weight.data() + g * stride;
        if (!p.weight) std::copy(from, from + num, mixed);
        for (int64_t i = 0; p.weight && !g && i < num; ++i) mixed[i] = from[i] * weight[i];
        for (int64_t i = 0; p.weight && g && i < num; ++i) mixed[i] += from[i] * weight[i];
      }
      if (p.image.type == kUint8) divide_row(mixed, num, 255.0f);
      write_row(p, p.out, m, h, lanes, mixed);
    }
  }
}

// Calls work(scratch, from, to) for one share of 0..count in each thread.
template <typename Work>
void share_out(const Problem& p, int64_t count, bool is_backward, Work work) {
  if (count == 0) return;
  const int64_t num_shares = std::max<int64_t>(1, std::min(p.num_threads, count));
  std::atomic<bool> is_out_of_memory{false};
#pragma omp parallel for num_threads(num_shares) schedule(static, 1)
  for (int64_t share = 0; share < num_shares; ++share) {
    try {
      Scratch scratch(p, is_backward);
      work(scratch, count * share / num_shares, count * (share + 1) / num_shares);
    } catch (const std::exception&) {
      // Nothing else is thrown than by vectors that cannot be made.
      is_out_of_memory = true;
    }
  }
  if (is_out_of_memory) throw std::bad_alloc();
}

void forward(const Problem& p) {
  share_out(p, p.M, false, [&](Scratch& s, int64_t from, int64_t to) {
    for (int64_t m = from; m < to; ++m) p.theta ? warp_image(p, s, m) : copy_image(p, s, m);
  });
}

// ---- Backward.

// Sums over pixels, a lane a channel: the derivatives along x and y, and both times the column.
template <typename V>
struct Sums {
  V x = {}, y = {}, x_column = {}, y_column = {};
};

// Adds the pixels from w on to `sums`, and gradient times value to `value`, each lane by itself.
template <int kPixels, bool kWeighted, bool kHasSlopes>
HARD_KERNELS_INLINE void differentiate(
    const float* source, int64_t line, const Place& at, const float* weight, const f4* grad,
    f4* value, int64_t w, Sums<typename Lanes<kPixels>::Vector>& sums) {
  typedef Lanes<kPixels> L;
  typedef typename L::Vector V;
  const Taps<L> taps(source, line, at.offset + w);
  const V x = L::spread(at.fx + w), y = L::spread(at.fy + w), column = L::spread(at.column + w);
  const V down_left = taps.low_left - taps.top_left, down_right = taps.low_right - taps.top_right;
  const V left = taps.top_left + y * down_left, along_x = taps.top_right + y * down_right - left;
  V g = load<V>(grad + w);
  if (kWeighted) {
    store(value + w, load<V>(value + w) + g * (left + x * along_x));
    g *= L::spread(weight + w);
  }
  V by_x = g * along_x, by_y = g * (down_left + x * (down_right - down_left));
  if (kHasSlopes) {
    by_x *= L::spread(at.slope_x + w);
    by_y *= L::spread(at.slope_y + w);
  }
  sums.x += by_x;
  sums.y += by_y;
  sums.x_column += by_x * column;
  sums.y_column += by_y * column;
}

template <bool kWeighted, bool kHasSlopes>
HARD_KERNELS_APART Sums<f4> differentiate_row(
    const float* source, int64_t line, const Place& at, const float* weight, int64_t width,
    const f4* grad, f4* value) {
  Sums<f8> pairs;
  Sums<f4> last;
  int64_t w = 0;
  for (; w + 2 <= width; w += 2) {
    differentiate<2, kWeighted, kHasSlopes>(source, line, at, weight, grad, value, w, pairs);
  }
  if (w < width) {
    differentiate<1, kWeighted, kHasSlopes>(source, line, at, weight, grad, value, w, last);
  }
  last.x += Lanes<2>::total(pairs.x);
  last.y += Lanes<2>::total(pairs.y);
  last.x_column += Lanes<2>::total(pairs.x_column);
  last.y_column += Lanes<2>::total(pairs.y_column);
  return last;
}

// Adds one row's gradient to the taps it was read from.
template <bool kWeighted>
HARD_KERNELS_APART void scatter_row(
    float* target, int64_t line, const Place& at, const float* weight, int64_t width,
    const f4* grad) {
  for (int64_t w = 0; w < width; ++w) {
    // One tap at a time, of the size that the next pixel reads it with.
    float* to = target + at.offset[w];
    const f4 g = kWeighted ? grad[w] * weight[w] : grad[w];
    const f4 right = g * at.fx[w], left = g - right;
    const f4 low_right = right * at.fy[w], low_left = left * at.fy[w];
    store(to, load<f4>(to) + (left - low_left));
    store(to + kLanes, load<f4>(to + kLanes) + (right - low_right));
    store(to + line, load<f4>(to + line) + low_left);
    store(to + line + kLanes, load<f4>(to + line + kLanes) + low_right);
  }
}

HARD_KERNELS_INLINE double sum_channels(const Problem& p, f4 value) {
  double sum = 0.0;
  for (int c = 0; c < p.C; ++c) sum += value[c];
  return sum;
}

void differentiate_warped_row(const Problem& p, Scratch& s, int64_t h, double* theta) {
  const float* source = s.source.data();
  const float* weight = p.weight ? s.row_weight.data() : nullptr;
  const f4* grad = reinterpret_cast<const f4*>(s.row.data());
  f4* value = reinterpret_cast<f4*>(s.value.data());
  const int64_t line = line_floats(p);
  const Place at = s.place();
  if (p.grad_image.data) {
    const auto scatter_any = weight ? scatter_row<true> : scatter_row<false>;
    scatter_any(s.target.data(), line, at, weight, p.W, grad);
  }
  if (!p.grad_theta && !p.grad_weight) return;
  const bool has_slopes = p.padding != kZeros;
  const auto differentiate_any = weight ? (has_slopes ? differentiate_row<true, true>
                                                      : differentiate_row<true, false>)
                                        : (has_slopes ? differentiate_row<false, true>
                                                      : differentiate_row<false, false>);
  const Sums<f4> sums = differentiate_any(source, line, at, weight, p.W, grad, value);
  const double row = h + 0.5 - 0.5 * p.H, x = sum_channels(p, sums.x), y = sum_channels(p, sums.y);
  theta[0] += sum_channels(p, sums.x_column);
  theta[1] += x * row;
  theta[2] += x;
  theta[3] += sum_channels(p, sums.y_column);
  theta[4] += y * row;
  theta[5] += y;
}

// Writes weight's gradient for one line of patches, and clears the sums for the next.
void sum_patches(const Problem& p, Scratch& s, int64_t item, int64_t patch, int64_t lanes) {
  if (!p.grad_weight) return;
  const double scale = p.image.type == kUint8 ? 1.0 / 255.0 : 1.0;
  for (int64_t q = 0; q < p.Q; ++q) {
    double sum = 0.0;
    for (int64_t w = s.column_starts[q]; w < s.column_starts[q + 1]; ++w) {
      for (int64_t c = 0; c < p.C; ++c) sum += s.value[w * lanes + c];
    }
    p.grad_weight[(item * p.P + patch) * p.Q + q] = sum * scale;
  }
  std::fill(s.value.begin(), s.value.end(), 0.0f);
}

// Writes theta's and weight's gradients of one (m, g), and adds to its image's in the scratch.
void differentiate_warp(const Problem& p, Scratch& s, int64_t item, int64_t n) {
  double theta[6] = {};
  if (p.grad_theta || p.grad_weight) fill(p, s, n);
  for (int64_t patch = 0; patch < p.P; ++patch) {
    if (p.weight) spread_weights(p, s, item, patch, 1, s.row_weight.data());
    for (int64_t h = s.row_starts[patch]; h < s.row_starts[patch + 1]; ++h) {
      unpack(p, p.grad, item / p.G, h, reinterpret_cast<f4*>(s.row.data()));
      locate(p, p.theta + item * 6, h, s);
      differentiate_warped_row(p, s, h, theta);
    }
    sum_patches(p, s, item, patch, kLanes);
  }
  if (!p.grad_theta) return;
  const double width = p.W, height = p.H, scale = p.image.type == kUint8 ? 1.0 / 255.0 : 1.0;
  const double per_entry[6] = {1.0, width / height, 0.5 * width, height / width, 1.0, 0.5 * height};
  for (int i = 0; i < 6; ++i) p.grad_theta[item * 6 + i] = theta[i] * per_entry[i] * scale;
}

// How many lanes rows have where nothing is warped: both must lie alike.
int64_t copied_lanes(const Problem& p) {
  return p.image.is_packed ? row_lanes(p, p.grad) : row_lanes(p, p.image);
}

void differentiate_copy(const Problem& p, Scratch& s, int64_t item, int64_t n) {
  const int64_t lanes = copied_lanes(p), num = p.W * lanes;
  const float* weight = s.row_weight.data();
  float* value = s.value.data();
  for (int64_t patch = 0; patch < p.P; ++patch) {
    if (p.weight) spread_weights(p, s, item, patch, lanes, s.row_weight.data());
    for (int64_t h = s.row_starts[patch]; h < s.row_starts[patch + 1]; ++h) {
      const float* grad = read_row(p, p.grad, item / p.G, h, lanes, s.row.data());
      if (p.grad_weight) {
        const float* from = read_row(p, p.image, n, h, lanes, s.other_row.data());
        for (int64_t i = 0; i < num; ++i) value[i] += grad[i] * from[i];
      }
      if (!p.grad_image.data) continue;
      float* target = s.target.data() + h * num;
      for (int64_t i = 0; p.weight && i < num; ++i) target[i] += grad[i] * weight[i];
      for (int64_t i = 0; !p.weight && i < num; ++i) target[i] += grad[i];
    }
    sum_patches(p, s, item, patch, lanes);
  }
}

void differentiate_item(const Problem& p, Scratch& s, int64_t item, int64_t n) {
  p.theta ? differentiate_warp(p, s, item, n) : differentiate_copy(p, s, item, n);
}

void write_image_gradient(const Problem& p, Scratch& s, int64_t n) {
  const int64_t lanes = p.theta ? kLanes : copied_lanes(p);
  const float* target = p.theta ? inside(p, s.target) : s.target.data();
  const int64_t line = p.theta ? line_floats(p) : p.W * lanes;
  for (int64_t h = 0; h < p.H; ++h) write_row(p, p.grad_image, n, h, lanes, target + h * line);
  std::fill(s.target.begin(), s.target.end(), 0.0f);
}

void backward(const Problem& p) {
  const int64_t num_items = p.M * p.G;
  if (!p.grad_image.data) {
    share_out(p, num_items, true, [&](Scratch& s, int64_t from, int64_t to) {
      for (int64_t item = from; item < to; ++item) {
        differentiate_item(p, s, item, p.index ? p.index[item] : item);
      }
    });
    return;
  }
  // By image: its gradient is summed by one thread alone, in one order.
  std::vector<int64_t> first(p.N + 1), items(num_items);
  for (int64_t item = 0; item < num_items; ++item) ++first[(p.index ? p.index[item] : item) + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<int64_t> next(first);
  for (int64_t item = 0; item < num_items; ++item) {
    items[next[p.index ? p.index[item] : item]++] = item;
  }
  share_out(p, p.N, true, [&](Scratch& s, int64_t from, int64_t to) {
    for (int64_t n = from; n < to; ++n) {
      for (int64_t i = first[n]; i < first[n + 1]; ++i) differentiate_item(p, s, items[i], n);
      write_image_gradient(p, s, n);
    }
  });
}

}  // namespace HARD_KERNELS_LEVEL
}  // namespace

#endif
