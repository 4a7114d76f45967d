// Vectors of this machine's width, their exponential, and small matrix products on them.
//
// Matrices are row-major; rows and columns of every product are padded to multiples of `kPad`, so
// that no kernel has a remainder.
#pragma once

#include <cstdint>
#include <limits>

namespace deberta {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kTileRows = 8;
#elif defined(__AVX__)
constexpr int kWidth = 8, kTileRows = 4;
#else
constexpr int kWidth = 4, kTileRows = 4;
#endif
constexpr int64_t kPad = 32;

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef float Unaligned __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

inline Floats Load(const float* x) { return *reinterpret_cast<const Unaligned*>(x); }
inline void Store(float* x, Floats value) { *reinterpret_cast<Unaligned*>(x) = value; }
inline Floats Max(Floats x, Floats y) { return x > y ? x : y; }

inline Ints Lanes() {
  Ints lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

inline float Sum(Floats x) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += x[i];
  return sum;
}

inline float Max(Floats x) {
  float top = x[0];
  for (int i = 1; i < kWidth; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// e^x to 2 units in the last place, for x <= 0; 0 where it is less than a float can hold.
inline Floats Exp(Floats x) {
  const Floats kept = x > -87.0f ? x : Floats{} - 87.0f;
  const Floats shifted = kept * 1.44269504f - 0.5f;
  const Ints power = __builtin_convertvector(shifted, Ints);  // towards 0: the nearest integer
  const Floats whole = __builtin_convertvector(power, Floats);
  const Floats rest = (kept - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  const Floats scaled = p * (Floats)((power + 127) << 23);
  return x > -87.0f ? scaled : Floats{};
}

// C (+)= A B for kTileRows rows of C and two vectors of its columns.
inline void Tile(int64_t inner, const float* a, int64_t a_row, int64_t a_column, const float* b,
                 int64_t b_row, float* c, int64_t c_row, bool add) {
  Floats sums[kTileRows][2] = {};
  for (int64_t k = 0; k < inner; ++k, a += a_column, b += b_row) {
    const Floats left = Load(b), right = Load(b + kWidth);
#pragma GCC unroll 8
    for (int row = 0; row < kTileRows; ++row) {
      const float factor = a[row * a_row];
      sums[row][0] += factor * left;
      sums[row][1] += factor * right;
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kTileRows; ++row, c += c_row) {
    Store(c, add ? Load(c) + sums[row][0] : sums[row][0]);
    Store(c + kWidth, add ? Load(c + kWidth) + sums[row][1] : sums[row][1]);
  }
}

// A [rows, inner], read with any strides, so that it may be a transpose.
struct Left {
  const float* data;
  int64_t row, column;
};

// C [rows, columns] (+)= A B; rows and columns are multiples of kPad.
inline void Multiply(int64_t rows, int64_t columns, int64_t inner, Left a, const float* b,
                     int64_t b_row, float* c, int64_t c_row, bool add) {
  for (int64_t column = 0; column < columns; column += 2 * kWidth) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
      Tile(inner, a.data + row * a.row, a.row, a.column, b + column, b_row,
           c + row * c_row + column, c_row, add);
    }
  }
}

}  // namespace deberta
