// How packed matrices lie in memory for the products, and how activations do.
//
// A panel is 16 rows of a matrix, one block of columns after another; missing rows of the last panel are zeros. Of a block of 32 columns (B = 32):
//
//     scales    16 x float16, or 16 exponents of two (MXFP4)
//     minima    16 x float16, where the format has them
//     numbers   lines of 64 bytes: 4 columns of each of the 16 rows, the first row's first. As bits of an unsigned code
//
// and of a block of 256 (B = 256): 16 x float16, another 16 for the minima where there are any, and eight times
//
//     scales    16 whole numbers of 8 bits for each group of 16 or 32 columns
//     minima    as many, where the format has them
//     numbers   as above
//
// Codes of 4 bits take four lines for 32 columns: the lower halves of line j are columns 4 j to 4 j + 3, the upper ones columns 16 + 4 j and on.
// Of 2 bits, two: bits 2 j and up of line i are columns 16 i + 4 j and on. Bits above those lie in lines of their own: one line of single bits
// (bit j: columns 4 j and on), or two of pairs. A number means (table[code] or code - offset) * scale - minimum, in float32, as ops/unpack.py has it.
#pragma once
#include <cstdint>
#include <utility>

namespace pellucid {

constexpr int kPanel = 16;  // rows
constexpr int kColumns = 32;  // that share one scale of the activations
constexpr int kLine = 64;  // bytes

enum class Scale { half, exponent, codes };  // float16 a block of 32; a power of two a block of 32; float16 a block of 256 and a code a group
enum class Table { none, iq4, e2m1 };

struct Layout {
  const char* name;
  int block, source_bytes;  // numbers and bytes of a block of the file
  int bits, high_bits;  // of a code, in the lower and the upper lines
  int offset;  // what a code of zero lies below zero
  int group;  // columns of one scale
  Scale scale;
  bool minimum;
  Table table;

  constexpr int n_groups() const { return kColumns / group; }
  constexpr int head_bytes() const { return (scale == Scale::exponent ? 1 : 2) * kPanel * (minimum ? 2 : 1); }
  constexpr int code_bytes() const { return scale == Scale::codes ? kPanel * n_groups() * (minimum ? 2 : 1) : 0; }
  constexpr int line_bytes() const { return 8 * kLine * bits / 8; }
  constexpr int high_bytes() const { return 8 * kLine * high_bits / 8; }
  constexpr int part_bytes() const { return code_bytes() + line_bytes() + high_bytes(); }  // of 32 columns, without the head
  constexpr int panel_bytes() const { return head_bytes() + block / kColumns * part_bytes(); }  // of a block
};

// The block structs are those of ggml-common.h: see ops/unpack.py.
inline constexpr Layout kLayouts[] = {
    {"Q8_0", 32, 34, 8, 0, 128, 32, Scale::half, false, Table::none},
    {"Q4_0", 32, 18, 4, 0, 8, 32, Scale::half, false, Table::none},
    {"Q4_1", 32, 20, 4, 0, 0, 32, Scale::half, true, Table::none},
    {"Q5_0", 32, 22, 4, 1, 16, 32, Scale::half, false, Table::none},
    {"Q5_1", 32, 24, 4, 1, 0, 32, Scale::half, true, Table::none},
    {"IQ4_NL", 32, 18, 4, 0, 128, 32, Scale::half, false, Table::iq4},
    {"MXFP4", 32, 17, 4, 0, 16, 32, Scale::exponent, false, Table::e2m1},
    {"Q2_K", 256, 84, 2, 0, 0, 16, Scale::codes, true, Table::none},
    {"Q3_K", 256, 110, 2, 1, 4, 16, Scale::codes, false, Table::none},
    {"Q4_K", 256, 144, 4, 0, 0, 32, Scale::codes, true, Table::none},
    {"Q5_K", 256, 176, 4, 1, 0, 32, Scale::codes, true, Table::none},
    {"Q6_K", 256, 210, 4, 2, 32, 16, Scale::codes, false, Table::none},
    {"IQ4_XS", 256, 136, 4, 0, 128, 32, Scale::codes, false, Table::iq4},
};
constexpr int kFormats = sizeof kLayouts / sizeof *kLayouts;

// The values of a code where they are not evenly spaced, plus the layout's offset. kvalues_iq4nl of ggml-common.h; twice those of E2M1.
inline constexpr uint8_t kIq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
inline constexpr uint8_t kE2m1[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// Rows of activations, each 32 numbers whole numbers between -127 and 127 times a scale; 16 rows together, block after block:
//
//     numbers  n x 32 bytes | scale, -(sum of the 32 numbers), -(sum of the first 16), scale * -(sum of the 32): n of each, 4 bytes
//
// where n is 16, or what the last rows are.
constexpr int kRows = 16;
constexpr int kRowBytes = kColumns + 16;  // of a row in a block

constexpr int64_t quantized_bytes(int64_t n_rows, int64_t n_columns) { return n_rows * (n_columns / kColumns) * kRowBytes; }
constexpr int64_t packed_bytes(const Layout& layout, int64_t n_rows, int64_t n_columns) {
  return (n_rows + kPanel - 1) / kPanel * (n_columns / layout.block) * layout.panel_bytes();
}

// A matrix in panels.
struct Packed {
  const uint8_t* data;
  int format;  // of kLayouts
  int64_t n_rows, n_columns;
};

struct Variant;  // kernels of one instruction set

// Panel-wise rows [16 i, 16 i + 16) of a file's matrix, for every i in the range; `from` is the first row's first byte.
void repack(int format, const uint8_t* from, int64_t n_rows, int64_t n_columns, uint8_t* to);

// The numbers of n rows, (n, n_columns).
void unpack(const Packed& w, const int64_t* rows, int64_t n, float* out);

// The same of one row as a file has it.
void unpack_row(int format, const uint8_t* from, int64_t n_columns, float* out);

// x (n_rows, n_columns) -> quantized_bytes of activations. The same bytes with every variant.
void quantize(const Variant& variant, const float* x, int64_t n_rows, int64_t n_columns, uint8_t* out);

// out (n_rows, w.n_rows) = x @ w.T + bias, from quantized rows; bias may be null. Whatever stands beside a row, and however many threads work: the same bits.
void multiply(const Variant& variant, const Packed& w, const uint8_t* x, int64_t n_rows, const float* bias, float* out, int64_t out_stride);

// The same by this thread alone, of panels [first, last).
void multiply_panels(const Variant& variant, const Packed& w, int64_t first, int64_t last, const uint8_t* x, int64_t n_rows, const float* bias, float* out,
                     int64_t out_stride);

// For a plan that splits the work itself: one chunk of the above, of n_chunks(w, n_rows).
int64_t n_chunks(const Packed& w, int64_t n_rows);
std::pair<int64_t, int64_t> rows_of_chunk(const Packed& w, int64_t n_rows, int64_t chunk);  // of the matrix: from, to
void multiply_chunk(const Variant& variant, const Packed& w, const uint8_t* x, int64_t n_rows, const float* bias, float* out, int64_t out_stride,
                    int64_t chunk);

}  // namespace pellucid
