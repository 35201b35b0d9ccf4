// The passes of phi over a matrix, for CPUs: native.py compiles and calls this file. README.md has the formulas.
//
// A thread takes rows in blocks of four, and a block in chunks of columns. Z = B A of a chunk, phi, phi', dZ and its
// products with A and B are computed while the chunk is in the first cache; memory holds W0, G and what is written.
//
// LANE_BYTES, the size of a vector, is given by the caller: 64, 32 or 16. Vectors are the extension that GCC and Clang
// share, so one text serves every processor. Nothing here needs the C++ library at run time.

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t CHUNK = 512;  // columns
constexpr int BLOCK = 4;        // rows
constexpr int SUMMED_BLOCKS = 16;

enum Form : int32_t { SINC = 0, LINEAR = 1, SINE = 2 };  // "residual" is SINC with a linear part
enum Type : int32_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

#if defined(DOUBLE)
typedef double real;
typedef int64_t whole;
constexpr real MAGIC = 6755399441055744.0, FURTHEST = 1.0e15;
constexpr int TERMS = 11;
constexpr Type OWN_TYPE = FLOAT64;
#else
typedef float real;
typedef int32_t whole;
// MAGIC, added and subtracted, rounds to a whole number, whose parity is then the lowest bit
constexpr real MAGIC = 12582912.0f, FURTHEST = 4.0e6f;
constexpr int TERMS = 7;
constexpr Type OWN_TYPE = FLOAT32;
#endif

typedef real V __attribute__((vector_size(LANE_BYTES)));
typedef whole I __attribute__((vector_size(LANE_BYTES)));
constexpr int LANES = LANE_BYTES / sizeof(real), SIGN_SHIFT = 8 * sizeof(real) - 1;
constexpr int N = 2;  // vectors at a time
constexpr int64_t STEP = N * LANES;

// Where |z / tau| of all of N vectors is within a reach, the sum of the sincs is a series whose cost does not depend on K:
// expansion.py has the formulas. Each tier has a reach and a number of terms; doubles have no tiers, and go the long way.
constexpr int MOST_TIERS = 3, MOST_TERMS = 32;
enum Part { EVEN, ODD, SLOPE_EVEN, SLOPE_ODD, PARTS };
typedef int32_t Hashes __attribute__((vector_size(4 * LANES)));
typedef uint32_t Wrapping __attribute__((vector_size(4 * LANES)));

// in place of 0 where 1 / g is needed; its square is still a float
constexpr double TINY = 1e-18;
constexpr double PI = 3.14159265358979323846;

INLINE V all(real x) {
    return x - V{};
}

INLINE V load(const real* from) {
    V x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(real* to, V x) {
    memcpy(to, &x, sizeof x);
}

// the upper half added to the lower one, until one number is left
INLINE real sum(V x) {
    real lanes[LANES];
    store(lanes, x);
#pragma GCC unroll 4
    for (int width = LANES / 2; width > 0; width /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// 1 / x, for floats by an estimate of the processor's and one step of Newton's
INLINE V inverse(V x) {
#if !defined(DOUBLE) && defined(__AVX512F__) && LANE_BYTES == 64
    V r = (V)_mm512_rcp14_ps((__m512)x);
    return r + r * (1 - x * r);
#elif !defined(DOUBLE) && defined(__AVX__) && LANE_BYTES == 32
    // to the third order: the second is always too small, which sums of many would show
    V r = (V)_mm256_rcp_ps((__m256)x), error = 1 - x * r;
    return r + r * (error + error * error);
#else
    return 1 / x;
#endif
}

// The series of sinc(g) in x = g^2, (-1)^n pi^(2n) / (2n+1)!, of cos(pi g) and of sinc'(g) / (2g)
struct Series {
    double sinc[11], cosine[11], slope[11];
    constexpr Series() : sinc(), cosine(), slope() {
        double a = 1;
        for (int n = 0; n < 11; n++) {
            sinc[n] = a;
            cosine[n] = (2 * n + 1) * a;
            slope[n] = n * a;
            a *= -PI * PI / ((2 * n + 2) * (2 * n + 3));
        }
    }
};
constexpr Series SERIES;

template <int FROM = 0>
INLINE V polynomial(const double* a, V x) {
    V value = all((real)a[TERMS - 1]);
#pragma GCC unroll 16
    for (int n = TERMS - 2; n >= FROM; n--) value = value * x + (real)a[n];
    return value;
}

// One matrix: what native.py's `_Matrix` holds, in its order.
struct Matrix {
    const void *A, *B, *W0, *c;  // in memory A has `stride` columns, a multiple of STEP; W0 may be null
    const real* sincs;           // [2, K]: sinc(offset - k), sinc(-offset - k), with a carrier
    const double* reaches;       // [tiers]
    const int64_t* terms;        // [tiers]
    const double* series;        // [terms of all tiers, PARTS, K]
    const int64_t* row_numbers;  // null: 0, 1, ...
    int32_t* column_hashes;      // `stride` numbers to be written, with a carrier; null without
    int64_t rows, columns, stride, rank, half;  // half = K / 2
    double per_tau, height, linear, bend, offset;
    uint32_t seed;
    int32_t form, W0_type, type, threads, tiers;
};

// A series that serves |z / tau| <= reach: its rows among those of all tiers
struct Tier {
    real reach, per_reach;
    int first, terms;
};

// What does not depend on the entry
struct Numbers {
    real per_tau, height, linear, bend, offset, value[2];
    int half;
    const real *plus, *minus;  // (-1)^k c_k and (-1)^k c_-k, from k = 1
    real middle;
    int tiers, terms;  // terms of all tiers
    Tier tier[MOST_TIERS];
    real series[MOST_TERMS][PARTS];
};

// Sums over a block of rows
struct Sums {
    V*plus, *minus;  // of upstream times sinc(u - k) and sinc(u + k), up to the sign (-1)^k, from k = 1
    V moments[MOST_TERMS][2];  // of upstream times what a coefficient of EVEN or ODD has
    bool is_near[MOST_TIERS], is_far;  // which of them are not 0
    V middle, lifted, lifted_of_minus;  // of LINEAR: middle has the carrier's signs, lifted has not
};

// as carrier.py's: a hash of a whole number, and the seed as one that is not 0
INLINE uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x2C1B3C6Du;
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    return x ^ (x >> 16);
}

INLINE uint32_t key(uint32_t seed) { return mix(seed ^ 0x243F6A88u); }

INLINE I minus_signs(int32_t row, const int32_t* columns) {
    Wrapping of_columns;
    memcpy(&of_columns, columns, sizeof of_columns);
    return __builtin_convertvector((Hashes)(of_columns * (uint32_t)row) < 0, I);
}

// j = round(u), g = u - j, and (-1)^j as the bit of a sign
INLINE void cell(V u, V& j, V& g, I& sign) {
    V shifted = u + MAGIC;
    j = shifted - MAGIC;
    g = u - j;
    sign = (I)shifted << SIGN_SHIFT;
}

INLINE V signed_by(V x, I sign) {
    return (V)((I)x ^ sign);
}

INLINE V where(I mask, V x) {
    return (V)((I)x & mask);
}

// a number by the carrier's sign; without a carrier always the first
INLINE V by_sign(real plus, real minus, I is_minus, bool carried) {
    return carried ? (is_minus ? all(minus) : all(plus)) : all(plus);
}

// z / tau, moved by the carrier
INLINE V moved(V z, const Numbers& of, I is_minus, bool carried) {
    V u = z * of.per_tau;
    return carried ? u + by_sign(of.offset, -of.offset, is_minus, carried) : u;
}

// the same, kept where it has a nearest whole number; NaN stays NaN
INLINE V argument(V z, const Numbers& of, I is_minus, bool carried) {
    V u = moved(z, of, is_minus, carried);
    u = u > FURTHEST ? all(FURTHEST) : u;
    return u < -FURTHEST ? all(-FURTHEST) : u;
}

INLINE bool any(I mask) {
    uint64_t words[LANE_BYTES / 8], found = 0;
    memcpy(words, &mask, sizeof words);
#pragma GCC unroll 8
    for (int i = 0; i < LANE_BYTES / 8; i++) found |= words[i];
    return found != 0;
}

// z / tau, moved by the carrier, of N vectors, and the first tier that serves them all; null: none does
template <bool CARRIED>
INLINE const Tier* tier_of(const V* z, const Numbers& of, const I* is_minus, V* u) {
    V furthest = {};
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        u[n] = moved(z[n], of, is_minus[n], CARRIED);
        V far = u[n] < 0 ? -u[n] : u[n];
        furthest = far > furthest ? far : furthest;
    }
    for (int t = 0; t < of.tiers; t++)
        if (!any((I)(furthest > of.tier[t].reach))) return &of.tier[t];
    return nullptr;
}

// scale phi of a vector from what f is there: the sum of the sincs, from which a carrier takes its own value
template <bool CARRIED>
INLINE V value_of(V z, V f, const Numbers& of, I is_minus) {
    if (CARRIED) {
        f -= by_sign(of.value[0], of.value[1], is_minus, CARRIED);
        f = where((I)(z != 0), f);
    }
    return of.linear * z + of.height * f;
}

// height times the gradient of a vector, without the entries where a carrier's phi is 0 by its mask
template <bool CARRIED>
INLINE V lifted_of(V z, V upstream, const Numbers& of, I is_minus, Sums& sums) {
    V lifted = of.height * upstream;
    if (CARRIED) {
        lifted = where((I)(z != 0), lifted);
        sums.lifted += lifted;
        sums.lifted_of_minus += where(is_minus, lifted);
    }
    return lifted;
}

// Horner's scheme in y = 2 x^2 - 1, x = u / reach, for so many parts of a series
template <int COUNT>
INLINE void parts_of(const V* u, const Tier& tier, const Numbers& of, V* x, V* y, V (*part)[N]) {
    const real(*series)[PARTS] = of.series + tier.first;
    const int last = tier.terms - 1;
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        x[n] = u[n] * tier.per_reach;
        y[n] = 2 * x[n] * x[n] - 1;
#pragma GCC unroll 4
        for (int p = 0; p < COUNT; p++) part[p][n] = all(series[last][p]);
    }
    for (int m = last - 1; m >= 0; m--)
#pragma GCC unroll 4
        for (int p = 0; p < COUNT; p++)
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) part[p][n] = part[p][n] * y[n] + series[m][p];
}

// scale phi of N vectors, by a series
template <bool CARRIED>
INLINE void near_values(const V* z, const V* u, const Tier& tier, const Numbers& of, const I* is_minus, V* value) {
    V x[N], y[N], part[2][N];
    parts_of<2>(u, tier, of, x, y, part);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        V f = part[EVEN][n] + x[n] * part[ODD][n];
        value[n] = value_of<CARRIED>(z[n], CARRIED ? f : u[n] * f, of, is_minus[n]);
    }
}

// the same, with dZ and the moments that dc is made of
template <bool CARRIED>
INLINE void near_values_and_gradients(
    const V* z, const V* u, const V* upstream, const Tier& tier, const Numbers& of, const I* is_minus, V* value, V* dz, Sums& sums
) {
    V x[N], y[N], part[PARTS][N], share[2][N];
    parts_of<PARTS>(u, tier, of, x, y, part);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        V f = part[EVEN][n] + x[n] * part[ODD][n], lifted = lifted_of<CARRIED>(z[n], upstream[n], of, is_minus[n], sums);
        value[n] = value_of<CARRIED>(z[n], CARRIED ? f : u[n] * f, of, is_minus[n]);
        dz[n] = upstream[n] * (of.linear + of.bend * (part[SLOPE_EVEN][n] + x[n] * part[SLOPE_ODD][n]));
        share[EVEN][n] = CARRIED ? lifted : lifted * u[n];
        share[ODD][n] = share[EVEN][n] * x[n];
    }
    sums.is_near[&tier - of.tier] = true;
    for (int m = tier.first; m < tier.first + tier.terms; m++)
#pragma GCC unroll 2
        for (int p = 0; p < 2; p++) {
            V total = sums.moments[m][p];
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) {
                total += share[p][n];
                share[p][n] *= y[n];
            }
            sums.moments[m][p] = total;
        }
}

// scale phi of N vectors
template <bool CARRIED>
INLINE void values(const V* z, const Numbers& of, const I* is_minus, V* value) {
    V j[N], g[N], near[N], total[N];
    I sign[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        cell(argument(z[n], of, is_minus[n], CARRIED), j[n], g[n], sign[n]);
        I at_point = CARRIED ? (I)(g[n] == 0) : (I)((g[n] == 0) & (j[n] != 0));
        near[n] = at_point ? all((real)TINY) : g[n];
        total[n] = CARRIED ? of.middle * inverse(j[n] + near[n]) : V{};
    }
    for (int k = 1; k <= of.half; k++) {
        real plus = of.plus[k - 1], minus = of.minus[k - 1], at = (real)k;
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            V from_plus = (j[n] - at) + near[n], from_minus = (j[n] + at) + near[n];
            total[n] += (plus * from_minus + minus * from_plus) * inverse(from_plus * from_minus);
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        V sinc = polynomial(SERIES.sinc, near[n] * near[n]);
        value[n] = value_of<CARRIED>(z[n], sinc * signed_by(near[n] * total[n], sign[n]), of, is_minus[n]);
    }
}

// scale phi and dZ = upstream scale phi'(z) of N vectors; adds to the sums that dc is made of
template <bool CARRIED>
INLINE void values_and_gradients(
    const V* z, const V* upstream, const Numbers& of, const I* is_minus, V* value, V* dz, Sums& sums
) {
    V j[N], g[N], near[N], away[N], total[N], squares[N], centre[N];
    I sign[N];
    sums.is_far = true;
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        cell(argument(z[n], of, is_minus[n], CARRIED), j[n], g[n], sign[n]);
        I at_point = CARRIED ? (I)(g[n] == 0) : (I)((g[n] == 0) & (j[n] != 0));
        near[n] = at_point ? all((real)TINY) : g[n];
        V lifted = lifted_of<CARRIED>(z[n], upstream[n], of, is_minus[n], sums);
        away[n] = signed_by(near[n] * (lifted * polynomial(SERIES.sinc, g[n] * g[n])), sign[n]);
        total[n] = squares[n] = centre[n] = V{};
        if (CARRIED) {
            V v = inverse(j[n] + near[n]);
            sums.middle += away[n] * v;
            I here = (I)(j[n] == 0);
            centre[n] = where(here, all(of.middle));
            v = where(~here, v);
            total[n] = of.middle * v;
            squares[n] = total[n] * v;
        }
    }
    for (int k = 1; k <= of.half; k++) {
        real plus = of.plus[k - 1], minus = of.minus[k - 1], at = (real)k;
        V of_plus = sums.plus[k - 1], of_minus = sums.minus[k - 1];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            V to_plus = j[n] - at, to_minus = j[n] + at;
            V from_plus = to_plus + near[n], from_minus = to_minus + near[n];
            V r = inverse(from_plus * from_minus);
            V v_plus = from_minus * r, v_minus = from_plus * r;
            of_plus += away[n] * v_plus;
            of_minus += away[n] * v_minus;
            // the slope near a centre has a formula of its own: this one would cancel there
            I is_plus = (I)(to_plus == 0), is_other = (I)(to_minus == 0);
            v_plus = where(~is_plus, v_plus);
            v_minus = where(~is_other, v_minus);
            centre[n] = is_plus ? all(plus) : is_other ? all(minus) : centre[n];
            V weighted_plus = plus * v_plus, weighted_minus = minus * v_minus;
            total[n] += weighted_plus + weighted_minus;
            squares[n] += weighted_plus * v_plus + weighted_minus * v_minus;
        }
        sums.plus[k - 1] = of_plus;
        sums.minus[k - 1] = of_minus;
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        V x = g[n] * g[n], sinc = polynomial(SERIES.sinc, x);
        // the coefficient of the centre has the sign (-1)^k in it, which (-1)^j takes away: j = k
        value[n] = value_of<CARRIED>(z[n], sinc * signed_by(centre[n] + g[n] * total[n], sign[n]), of, is_minus[n]);
        V slope = polynomial(SERIES.cosine, x) * total[n] - g[n] * sinc * squares[n];
        slope += centre[n] * (2 * g[n] * polynomial<1>(SERIES.slope, x));
        dz[n] = upstream[n] * (of.linear + of.bend * signed_by(slope, sign[n]));
    }
}

// sin(u) and cos(u), u = pi (j + g)
INLINE void sine_and_cosine(V u, V& sine, V& cosine) {
    constexpr real high = (real)PI, low = (real)(PI - (double)(real)PI + (sizeof(real) == 8 ? 1.2246467991473532e-16 : 0.0));
    V shifted = u * (real)(1 / PI) + MAGIC;
    V j = shifted - MAGIC;
    I sign = (I)shifted << SIGN_SHIFT;
    V g = ((u - j * high) - j * low) * (real)(1 / PI), x = g * g;
    sine = signed_by((real)PI * g * polynomial(SERIES.sinc, x), sign);
    cosine = signed_by(polynomial(SERIES.cosine, x), sign);
}

template <int FORM, bool CARRIED>
INLINE void weight_of(const real* z, const real* W0, real* out, const Numbers& of, int32_t row, const int32_t* columns) {
    V zs[N], value[N];
    I is_minus[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        zs[n] = load(z + n * LANES);
        is_minus[n] = CARRIED ? minus_signs(row, columns + n * LANES) : I{};
    }
    if constexpr (FORM == SINC) {
        V u[N];
        const Tier* tier = tier_of<CARRIED>(zs, of, is_minus, u);
        if (tier)
            near_values<CARRIED>(zs, u, *tier, of, is_minus, value);
        else
            values<CARRIED>(zs, of, is_minus, value);
    } else {
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            if constexpr (FORM == LINEAR) {
                value[n] = of.height * by_sign(of.value[0], of.value[1], is_minus[n], CARRIED) * zs[n];
            } else {
                V unused;
                sine_and_cosine(argument(zs[n], of, is_minus[n], false), value[n], unused);
                value[n] *= of.height;
            }
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++)
        store(out + n * LANES, W0 ? load(W0 + n * LANES) + value[n] : value[n]);
}

// dZ comes in the place of z, the weight in that of G
template <int FORM, bool CARRIED>
INLINE void gradients_of(
    real* z, const real* W0, real* G, const Numbers& of, int32_t row, const int32_t* columns, Sums& sums
) {
    V zs[N], upstream[N], value[N], dz[N];
    I is_minus[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        zs[n] = load(z + n * LANES);
        upstream[n] = load(G + n * LANES);
        is_minus[n] = CARRIED ? minus_signs(row, columns + n * LANES) : I{};
    }
    if constexpr (FORM == SINC) {
        V u[N];
        const Tier* tier = tier_of<CARRIED>(zs, of, is_minus, u);
        if (tier)
            near_values_and_gradients<CARRIED>(zs, u, upstream, *tier, of, is_minus, value, dz, sums);
        else
            values_and_gradients<CARRIED>(zs, upstream, of, is_minus, value, dz, sums);
    } else {
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
            if constexpr (FORM == LINEAR) {
                V slope = of.height * by_sign(of.value[0], of.value[1], is_minus[n], CARRIED);
                V share = of.height * upstream[n] * zs[n];
                sums.lifted += share;
                if (CARRIED) sums.middle += is_minus[n] ? -share : share;
                value[n] = slope * zs[n];
                dz[n] = upstream[n] * slope;
            } else {
                V sine, cosine;
                sine_and_cosine(argument(zs[n], of, is_minus[n], false), sine, cosine);
                value[n] = of.height * sine;
                dz[n] = upstream[n] * (of.bend * cosine);
            }
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
        store(G + n * LANES, W0 ? load(W0 + n * LANES) + value[n] : value[n]);
        store(z + n * LANES, dz[n]);
    }
}

// z [BLOCK, CHUNK] = B A of some columns; `vectors` is even here and below
void product(const real* A, int64_t stride, const real* B, int64_t rank, int64_t vectors, real* z) {
    for (int64_t v = 0; v < vectors; v += 2) {
        V total[BLOCK][2] = {};
        for (int64_t p = 0; p < rank; p++) {
            V first = load(A + p * stride + v * LANES), second = load(A + p * stride + (v + 1) * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK; i++) {
                total[i][0] += B[i * rank + p] * first;
                total[i][1] += B[i * rank + p] * second;
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {
            store(z + i * CHUNK + v * LANES, total[i][0]);
            store(z + i * CHUNK + (v + 1) * LANES, total[i][1]);
        }
    }
}

// dB [BLOCK, rank] += dZ A^T of some columns
void add_to_dB(const real* A, int64_t stride, int64_t rank, int64_t vectors, const real* dz, real* dB) {
    for (int64_t p = 0; p < rank; p += 2) {
        // of an odd rank the last one is done twice, and counted once
        const real *A_first = A + p * stride, *A_second = p + 1 < rank ? A_first + stride : A_first;
        V total[BLOCK][2] = {};
        for (int64_t v = 0; v < vectors; v++) {
            V first = load(A_first + v * LANES), second = load(A_second + v * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK; i++) {
                V d = load(dz + i * CHUNK + v * LANES);
                total[i][0] += d * first;
                total[i][1] += d * second;
            }
        }
        for (int i = 0; i < BLOCK; i++) {
            dB[i * rank + p] += sum(total[i][0]);
            if (p + 1 < rank) dB[i * rank + p + 1] += sum(total[i][1]);
        }
    }
}

// dA += B^T dZ of some columns
void add_to_dA(real* dA, int64_t stride, const real* B, int64_t rank, int64_t vectors, const real* dz) {
    for (int64_t v = 0; v < vectors; v += 2) {
        V d[BLOCK][2];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {
            d[i][0] = load(dz + i * CHUNK + v * LANES);
            d[i][1] = load(dz + i * CHUNK + (v + 1) * LANES);
        }
        for (int64_t p = 0; p < rank; p++) {
            real* to = dA + p * stride + v * LANES;
            V first = load(to), second = load(to + LANES);
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK; i++) {
                first += B[i * rank + p] * d[i][0];
                second += B[i * rank + p] * d[i][1];
            }
            store(to, first);
            store(to + LANES, second);
        }
    }
}

int64_t size_of(int32_t type) { return type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2; }

float of_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    // to the nearest, halves to the even one; a NaN stays one
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return x == x ? (uint16_t)rounded : (uint16_t)0x7FC0;
}

void read(const char* from, int32_t type, int64_t count, real* to) {
    if (type == FLOAT32)
        for (int64_t i = 0; i < count; i++) to[i] = (real)((const float*)from)[i];
    else if (type == FLOAT64)
        for (int64_t i = 0; i < count; i++) to[i] = (real)((const double*)from)[i];
    else if (type == BFLOAT16)
        for (int64_t i = 0; i < count; i++) to[i] = (real)of_bfloat16(((const uint16_t*)from)[i]);
#if defined(__FLT16_MAX__)
    else
        for (int64_t i = 0; i < count; i++) to[i] = (real)((const _Float16*)from)[i];
#endif
}

void write(char* to, int32_t type, int64_t count, const real* from) {
    if (type == FLOAT32)
        for (int64_t i = 0; i < count; i++) ((float*)to)[i] = (float)from[i];
    else if (type == FLOAT64)
        for (int64_t i = 0; i < count; i++) ((double*)to)[i] = (double)from[i];
    else if (type == BFLOAT16)
        for (int64_t i = 0; i < count; i++) ((uint16_t*)to)[i] = to_bfloat16((float)from[i]);
#if defined(__FLT16_MAX__)
    else
        for (int64_t i = 0; i < count; i++) ((_Float16*)to)[i] = (_Float16)(float)from[i];
#endif
}

struct Buffers {
    alignas(64) real z[BLOCK * CHUNK];
    alignas(64) real W0[CHUNK], G[CHUNK];
};

struct Gradients {
    real *parts, *dA, *dB, *dc;  // [2 threads, rank, stride], [rank, columns], [rows, rank], [K]
};

// Add sums to dc, and begin new ones: in a float a sum of more entries would lose digits.
void add_to_dc(const Matrix& m, const Numbers& of, Sums& sums, double* dc, double* moments) {
    const int half = of.half, K = 2 * half + 1;
    if (m.form == LINEAR) {
        dc[0] += sum(sums.lifted);
        if (m.column_hashes) dc[1] += sum(sums.middle);
        sums.middle = sums.lifted = V{};
        return;
    }
    if (sums.is_far) {
        for (int k = 1; k <= half; k++) {
            double sign = k % 2 ? -1 : 1;
            dc[half + k] += sign * sum(sums.plus[k - 1]);
            dc[half - k] += sign * sum(sums.minus[k - 1]);
            sums.plus[k - 1] = sums.minus[k - 1] = V{};
        }
        dc[half] += sum(sums.middle);
        sums.middle = V{};
        sums.is_far = false;
    }
    if (m.column_hashes) {
        double of_minus = sum(sums.lifted_of_minus), of_plus = (double)sum(sums.lifted) - of_minus;
        for (int k = 0; k < K; k++) dc[k] -= of_plus * m.sincs[k] + of_minus * m.sincs[K + k];
        sums.lifted = sums.lifted_of_minus = V{};
    }
    for (int t = 0; t < of.tiers; t++) {
        if (!sums.is_near[t]) continue;
        sums.is_near[t] = false;
        for (int i = of.tier[t].first; i < of.tier[t].first + of.tier[t].terms; i++)
            for (int part = 0; part < 2; part++) {
                moments[2 * i + part] += sum(sums.moments[i][part]);
                sums.moments[i][part] = V{};
            }
    }
}

// dc of what the series served
void add_moments(const Matrix& m, const Numbers& of, const double* moments, double* dc) {
    const int64_t K = 2 * m.half + 1;
    for (int64_t i = 0; i < of.terms; i++)
        for (int part = 0; part < 2; part++)
            for (int64_t k = 0; k < K; k++) dc[k] += moments[2 * i + part] * m.series[(i * PARTS + part) * K + k];
}

INLINE int32_t hash_of_row(const Matrix& m, int64_t row) {
    uint32_t number = (uint32_t)(m.row_numbers ? m.row_numbers[row] : row);
    return (int32_t)(mix(number + key(m.seed)) | 1);
}

// Of a block of rows from `row` on: the weight into `out`; with GRADIENTS `out` holds G before, and the sums go on.
// B and dB are those of the block, with zeros for the rows that the matrix does not have.
template <int FORM, bool CARRIED, bool GRADIENTS>
void block_of(
    const Matrix& m, const Numbers& of, char* out, int64_t row, const real* B, Buffers& buffers, real* dA, real* dB, Sums& sums,
    double* dc, double* moments
) {
    const int64_t rows = m.rows - row < BLOCK ? m.rows - row : BLOCK;
    for (int64_t column = 0; column < m.columns; column += CHUNK) {
        const real* A = (const real*)m.A + column;
        int64_t count = m.columns - column < CHUNK ? m.columns - column : CHUNK;
        int64_t padded = (count + STEP - 1) / STEP * STEP, vectors = padded / LANES;
        product(A, m.stride, B, m.rank, vectors, buffers.z);
        for (int i = 0; i < rows; i++) {
            int64_t at = (row + i) * m.columns + column;
            char* place = out + at * size_of(m.type);
            bool direct = padded == count && m.type == OWN_TYPE;
            real* target = direct ? (real*)place : buffers.G;
            if (GRADIENTS && !direct) {
                for (int64_t n = count; n < padded; n++) buffers.G[n] = 0;
                read(place, m.type, count, buffers.G);
            }
            const real* W0 = nullptr;
            if (m.W0) {
                const char* from = (const char*)m.W0 + at * size_of(m.W0_type);
                W0 = (const real*)from;
                if (padded != count || m.W0_type != OWN_TYPE) {
                    read(from, m.W0_type, count, buffers.W0);
                    W0 = buffers.W0;
                }
            }
            real* z = buffers.z + i * CHUNK;
            int32_t hash = CARRIED ? hash_of_row(m, row + i) : 0;
            const int32_t* hashes = CARRIED ? m.column_hashes + column : nullptr;
            for (int64_t n = 0; n < padded; n += STEP) {
                const real* added = W0 ? W0 + n : nullptr;
                const int32_t* of_columns = CARRIED ? hashes + n : nullptr;
                if constexpr (GRADIENTS)
                    gradients_of<FORM, CARRIED>(z + n, added, target + n, of, hash, of_columns, sums);
                else
                    weight_of<FORM, CARRIED>(z + n, added, target + n, of, hash, of_columns);
            }
            if (!direct) write(place, m.type, count, buffers.G);
        }
        if constexpr (GRADIENTS) {
            if (FORM != SINE) add_to_dc(m, of, sums, dc, moments);
            add_to_dB(A, m.stride, m.rank, vectors, buffers.z, dB);
            add_to_dA(dA + column, m.stride, B, m.rank, vectors, buffers.z);
        }
    }
}

template <int FORM, bool CARRIED, bool GRADIENTS>
void run(const Matrix& m, char* out, const Gradients& to) {
    const int half = (int)m.half;
    const real* c = (const real*)m.c;
    real* coefficients = (real*)__builtin_alloca(sizeof(real) * (2 * half + 2));
    Numbers of = {};
    of.per_tau = (real)m.per_tau, of.height = (real)m.height, of.linear = (real)m.linear, of.bend = (real)m.bend;
    of.offset = (real)m.offset, of.half = half, of.plus = coefficients, of.minus = coefficients + half;
    for (int k = 1; k <= half; k++) {
        real sign = k % 2 ? -1 : 1;
        coefficients[k - 1] = sign * c[half + k];
        coefficients[half + k - 1] = sign * c[half - k];
    }
    if (FORM == SINC) of.middle = c[half];
    if (FORM == LINEAR) of.value[0] = CARRIED ? c[0] + c[1] : c[0], of.value[1] = CARRIED ? c[0] - c[1] : c[0];
    if (FORM == SINC && CARRIED)
        for (int sign = 0; sign < 2; sign++) {
            double value = 0;
            for (int k = 0; k < 2 * half + 1; k++) value += (double)m.sincs[sign * (2 * half + 1) + k] * c[k];
            of.value[sign] = (real)value;
        }
    of.tiers = FORM == SINC ? m.tiers : 0;
    for (int t = 0; t < of.tiers; of.terms += (int)m.terms[t++])
        of.tier[t] = {(real)m.reaches[t], (real)(1 / m.reaches[t]), of.terms, (int)m.terms[t]};
    for (int64_t i = 0; i < of.terms; i++)
        for (int part = 0; part < PARTS; part++) {
            const double* row = m.series + (i * PARTS + part) * (2 * half + 1);
            double value = 0;
            for (int k = 0; k < 2 * half + 1; k++) value += row[k] * c[k];
            of.series[i][part] = (real)value;
        }
    // columns have numbers that no row has
    for (int64_t column = 0; CARRIED && column < m.stride; column++)
        m.column_hashes[column] = (int32_t)(mix((uint32_t)(-1 - column) + key(m.seed)) | 1);
    const int64_t blocks = (m.rows + BLOCK - 1) / BLOCK;
    const int threads = m.threads;
    const int width = FORM == SINE ? 0 : FORM == LINEAR ? 1 + CARRIED : 2 * half + 1;
    const int64_t size = m.rank * m.stride;
    double* all_dc = (double*)__builtin_alloca(sizeof(double) * (threads * width + 1));
    memset(all_dc, 0, sizeof(double) * threads * width);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int thread = 0; thread < threads; thread++) {
        Buffers buffers;
        memset(&buffers, 0, sizeof buffers);
        V* places = (V*)__builtin_alloca_with_align(sizeof(V) * (2 * half + 1), 8 * LANE_BYTES);
        // a sum of sums: one sum over all rows would lose digits
        real *total_dA = GRADIENTS ? to.parts + 2 * thread * size : nullptr, *dA = total_dA + size;
        if (GRADIENTS) memset(total_dA, 0, sizeof(real) * 2 * size);
        for (int k = 0; k < 2 * half; k++) places[k] = V{};
        Sums sums = {};
        sums.plus = places, sums.minus = places + half;
        double moments[2 * MOST_TERMS] = {}, *dc = all_dc + thread * width;
        real* B = (real*)__builtin_alloca(sizeof(real) * 2 * BLOCK * m.rank);
        real* dB = B + BLOCK * m.rank;
        for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
            const int64_t row = block * BLOCK, rows = m.rows - row < BLOCK ? m.rows - row : BLOCK;
            memset(B, 0, sizeof(real) * 2 * BLOCK * m.rank);
            memcpy(B, (const real*)m.B + row * m.rank, sizeof(real) * rows * m.rank);
            block_of<FORM, CARRIED, GRADIENTS>(m, of, out, row, B, buffers, dA, dB, sums, dc, moments);
            if (GRADIENTS) memcpy(to.dB + row * m.rank, dB, sizeof(real) * rows * m.rank);
            if (GRADIENTS && block % SUMMED_BLOCKS == SUMMED_BLOCKS - 1) {
                for (int64_t n = 0; n < size; n += LANES) store(total_dA + n, load(total_dA + n) + load(dA + n));
                memset(dA, 0, sizeof(real) * size);
            }
        }
        if (GRADIENTS && FORM == SINC) add_moments(m, of, moments, dc);
    }
    if (!GRADIENTS) return;
    for (int64_t p = 0; p < m.rank; p++)
        for (int64_t n = 0; n < m.columns; n++) {
            real total = 0;
            for (int part = 0; part < 2 * threads; part++) total += to.parts[part * size + p * m.stride + n];
            to.dA[p * m.columns + n] = total;
        }
    for (int k = 0; k < width; k++) {
        double total = 0;
        for (int thread = 0; thread < threads; thread++) total += all_dc[thread * width + k];
        to.dc[k] = (real)total;
    }
}

template <typename Bits>
bool is_zero(const char* from, int64_t entries) {
    for (int64_t n = 0; n < entries; n++) {
        Bits bits;
        memcpy(&bits, from + n * sizeof(Bits), sizeof(Bits));
        // without the sign
        if ((Bits)(bits << 1)) return false;
    }
    return true;
}

bool is_zero(const char* from, int32_t type, int64_t entries) {
    if (type == FLOAT64) return is_zero<uint64_t>(from, entries);
    return type == FLOAT32 ? is_zero<uint32_t>(from, entries) : is_zero<uint16_t>(from, entries);
}

template <bool GRADIENTS>
void chosen(const Matrix& m, char* out, const Gradients& to) {
    bool carried = m.column_hashes != nullptr;
    if (m.form == SINE) return run<SINE, false, GRADIENTS>(m, out, to);
    if (m.form == LINEAR) return carried ? run<LINEAR, true, GRADIENTS>(m, out, to) : run<LINEAR, false, GRADIENTS>(m, out, to);
    return carried ? run<SINC, true, GRADIENTS>(m, out, to) : run<SINC, false, GRADIENTS>(m, out, to);
}

}  // namespace

extern "C" {

#if defined(_OPENMP)
int32_t lrlora_is_threaded() { return 1; }
#else
int32_t lrlora_is_threaded() { return 0; }
#endif

// what A has in memory is a multiple of
int64_t lrlora_step() { return STEP; }

// out [rows, columns] = [W0 +] scale phi(B A)
void lrlora_weight(const Matrix* m, void* out) { chosen<false>(*m, (char*)out, {}); }

// dA, dB and dc from G, and the weight in its place; `parts` [2 threads, rank, stride] is to work in
void lrlora_gradients(const Matrix* m, void* G, real* parts, real* dA, real* dB, real* dc) {
    chosen<true>(*m, (char*)G, {parts, dA, dB, dc});
}

// How many rows of dY [sequences, length, columns] are not all zero, and their numbers. Padding is at the ends of sequences:
// where none begins or ends with a row of zeros, no other row is read, and all of them count.
int64_t lrlora_nonzero_rows(
    const char* dY, int64_t sequences, int64_t length, int64_t columns, int32_t type, int64_t* numbers
) {
    const int64_t row = columns * size_of(type), rows = sequences * length;
    bool is_padded = false;
    for (int64_t first = 0; first < rows && !is_padded; first += length)
        is_padded = is_zero(dY + first * row, type, columns) || is_zero(dY + (first + length - 1) * row, type, columns);
    if (!is_padded) return rows;
    int64_t found = 0;
    for (int64_t n = 0; n < rows; n++)
        if (!is_zero(dY + n * row, type, columns)) numbers[found++] = n;
    return found;
}
}
