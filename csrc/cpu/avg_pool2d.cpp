#include "ops/avg_pool2d.h"

#include "cpu/pool.h"

namespace fastcnn::FASTCNN_ISA {
namespace {

// Sums rows first, then columns, each upwards, so that both layouts add in one order.

template <class T>
void pool_nhwc(const AvgPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  A* ring = parts.take<A>(p.longest * p.channel_block);
  int64_t* slot = parts.take<int64_t>(p.w);
  for (int64_t w = 0; w < p.w; ++w) slot[w] = p.longest ? w % p.longest * p.channel_block : 0;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t n = row / p.oh, oh = row % p.oh;
    const int64_t channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const Window rows = p.rows[oh];
    const T* x = static_cast<const T*>(p.x) + n * p.h * p.w * p.c + c0;
    T* y = static_cast<T*>(p.y) + row * p.ow * p.c + c0;
    slide(
        p.columns, p.ow, slot, ring,
        [&](int64_t w, A* column) {
          const T* xw = x + w * p.c;
          each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
            V<A> sum{};
            if (p.backward) {
              for (int64_t h = rows.begin; h < rows.end; ++h)
                sum += load_part(xw + h * p.w * p.c + c, lanes) * A(p.row_scale[h]);
              sum *= A(p.column_scale[w]);
            } else {
              for (int64_t h = rows.begin; h < rows.end; ++h) sum += load_part(xw + h * p.w * p.c + c, lanes);
            }
            store_part(column + c, sum, lanes);
          });
        },
        [&](int64_t q) {
          const Window columns = p.columns[q];
          const A divisor = p.backward ? A(1) : A(p.row_scale[oh]) * A(p.column_scale[q]);
          each_vector<kLanes<T>>(channels, [&](int64_t c, int lanes) {
            V<A> sum{};
            for (int64_t w = columns.begin; w < columns.end; ++w) sum += load_part(ring + slot[w] + c, lanes);
            store_part(y + q * p.c + c, p.backward ? sum : sum / divisor, lanes);
          });
        });
  }
}

// The sum of a part of a row: in vectors where it is long (global pooling), four at a time, in a fixed order.
template <class T>
Acc<T> sum_of(const T* row, int64_t begin, int64_t end) {
  constexpr int L = kLanes<T>;
  Acc<T> total = 0;
  if (end - begin >= 2 * L) {
    V<Acc<T>> sum[4]{};
    for (; begin + 4 * L <= end; begin += 4 * L)
      for (int i = 0; i < 4; ++i) sum[i] += load(row + begin + i * L);
    for (; begin + L <= end; begin += L) sum[0] += load(row + begin);
    sum[0] += sum[1] + (sum[2] + sum[3]);
    for (int i = 0; i < L; ++i) total += sum[0][i];
  }
  for (; begin < end; ++begin) total += get(row[begin]);
  return total;
}

// One task's row of sums over rows of x, `summed`, becomes its row of y in one of three ways.
template <class T>
struct RowNchw {
  using A = Acc<T>;
  const AvgPool2dParams& p;
  const PhasedRow r;
  int64_t lead;  // zeros in front of `summed`
  A *summed, *phases, *merged, *column_scale;
  int64_t* tap;

  RowNchw(const AvgPool2dParams& params, Parts parts) : p(params), r(p.sw ? p.row() : PhasedRow(0, 1, 1, 1, 0, 1)) {
    lead = !p.sw ? 0 : p.backward ? (p.kw - 1) / p.sw : p.pw;
    const int64_t size = (r.size() > p.w ? r.size() : p.w) + lead + kMostLanes;
    summed = parts.take<A>(size);
    for (int64_t i = 0; i < size; ++i) summed[i] = 0;
    phases = parts.take<A>(r.size());
    merged = parts.take<A>(r.size());
    const int64_t pooled = p.backward ? p.w : p.ow;
    column_scale = parts.take<A>(pooled + kMostLanes);
    for (int64_t q = 0; q < pooled; ++q) column_scale[q] = A(p.column_scale[q]);
    tap = parts.take<int64_t>(p.kw);
    for (int64_t j = 0; j < p.kw; ++j) tap[j] = p.sw ? r.tap(j) : 0;
  }

  // y[q] = sum over j of row[q*s + j]: consecutive q read consecutive elements of a phase.
  void strided(T* y, A row_divisor) {
    const A* in = split(r, summed, phases);
    each_vector<kLanes<T>>(p.ow, [&](int64_t q, int lanes) {
      V<A> sum{};
      for (int64_t j = 0; j < p.kw; ++j) sum += load(in + tap[j] + q);
      store_part(y + q, sum / (load(column_scale + q) * row_divisor), lanes);
    });
  }

  // y[t*s + f] = sum over i of row[t - i], where tap i*s + f exists; the last first, to add upwards in q.
  void transposed(T* y) {
    for (int64_t f = 0; f < r.s; ++f)
      for (int64_t t = 0; t < r.ld; t += Vec<A>::lanes) {
        V<A> sum{};
        for (int64_t i = (p.kw - f + r.s - 1) / r.s - 1; i >= 0; --i) sum += load(summed + lead + t - i);
        store(phases + f * r.ld + t, sum);
      }
    const A* row = merge(r, phases, merged) + p.pw;
    each_vector<kLanes<T>>(p.ow, [&](int64_t q, int lanes) { store_part(y + q, load(row + q), lanes); });
  }

  void irregular(T* y, A row_divisor) {
    for (int64_t q = 0; q < p.ow; ++q) {
      const A sum = sum_of(summed, p.columns[q].begin, p.columns[q].end);
      put(y + q, p.backward ? sum : sum / (column_scale[q] * row_divisor));
    }
  }
};

template <class T>
void pool_nchw(const AvgPool2dParams& p, Parts parts, int64_t begin, int64_t end) {
  using A = Acc<T>;
  RowNchw<T> row(p, parts);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t oh = task % p.oh;
    const Window rows = p.rows[oh];
    const T* x = static_cast<const T*>(p.x) + task / p.oh * p.h * p.w;
    T* y = static_cast<T*>(p.y) + task * p.ow;
    each_vector<kLanes<T>>(p.w, [&](int64_t w, int lanes) {
      V<A> sum{};
      if (p.backward) {
        for (int64_t h = rows.begin; h < rows.end; ++h) sum += load_part(x + h * p.w + w, lanes) * A(p.row_scale[h]);
        sum *= load(row.column_scale + w);
      } else {
        for (int64_t h = rows.begin; h < rows.end; ++h) sum += load_part(x + h * p.w + w, lanes);
      }
      store_part(row.summed + row.lead + w, sum, lanes);
    });
    const A row_divisor = p.backward ? A(1) : A(p.row_scale[oh]);
    if (!p.sw)
      row.irregular(y, row_divisor);
    else if (p.backward)
      row.transposed(y);
    else
      row.strided(y, row_divisor);
  }
}

// Where one window covers the plane, a task of NCHW is a plane.
template <class T>
void pool_global_nchw(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const A rows = A(p.row_scale[0]), columns = A(p.column_scale[0]);
  for (int64_t task = begin; task < end; ++task) {
    const T* x = static_cast<const T*>(p.x) + task * p.w;
    T* y = static_cast<T*>(p.y) + task * p.ow;
    if (p.backward) {
      const V<A> all = splat(get(x[0]) * rows * columns);
      each_vector<kLanes<T>>(p.ow, [&](int64_t q, int lanes) { store_part(y + q, all, lanes); });
    } else {
      put(y, sum_of(x, 0, p.w) / (columns * rows));
    }
  }
}

// Where one window covers the plane, the mean of an image's pixels, which are the rows here.
template <class T>
void mean_nhwc(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>, kWide = 8;  // sums side by side: one alone would wait for its own additions
  const A divisor = A(p.row_scale[0]) * A(p.column_scale[0]);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / p.blocks(), c0 = task % p.blocks() * p.channel_block;
    const int64_t channels = p.c - c0 < p.channel_block ? p.c - c0 : p.channel_block;
    const T* x = static_cast<const T*>(p.x) + n * p.h * p.c + c0;
    T* y = static_cast<T*>(p.y) + n * p.c + c0;
    int64_t c = 0;
    for (; c + kWide * L <= channels; c += kWide * L) {
      V<A> sum[kWide]{};
      for (int64_t h = 0; h < p.h; ++h)
        for (int i = 0; i < kWide; ++i) sum[i] += load(x + h * p.c + c + i * L);
      for (int i = 0; i < kWide; ++i) store(y + c + i * L, sum[i] / divisor);
    }
    each_vector<L>(channels - c, [&](int64_t rest, int lanes) {
      V<A> sum{};
      for (int64_t h = 0; h < p.h; ++h) sum += load_part(x + h * p.c + c + rest, lanes);
      store_part(y + c + rest, sum / divisor, lanes);
    });
  }
}

}  // namespace

void avg_pool2d(const AvgPool2dParams& p, char* scratch, int64_t begin, int64_t end) {
  switch_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.global && !p.channels_last)
      pool_global_nchw<T>(p, begin, end);
    else if (p.global && !p.backward)
      mean_nhwc<T>(p, begin, end);
    else if (p.channels_last)
      pool_nhwc<T>(p, {scratch}, begin, end);
    else
      pool_nchw<T>(p, {scratch}, begin, end);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
