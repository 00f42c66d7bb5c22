#include "ops/lrn_max_pool2d.h"

namespace fastcnn {
namespace {

constexpr const char* kOp = "lrn_max_pool2d";
// With what is read and written beside them, within 1 MiB. Of channels the larger: neighbouring bands both scatter the
// gradients of the channels that lie within a window of the other.
constexpr int64_t kRowsBytes = 128 << 10, kPlanesBytes = 384 << 10;

struct NormArgs {
  int64_t size;
  double alpha, beta, k;
  int64_t groups;
  bool relu;
};

LRNMaxPool2dPlan make_plan(const Tensor& x, const NormArgs& a, const PoolGeometry& g, bool ceil_mode) {
  LRNMaxPool2dPlan plan{};
  plan.norm = norm_geometry(kOp, x, a.size, a.alpha, a.beta, a.k, a.groups, a.relu);
  check_pool_input(kOp, x);
  MaxPool2dParams& m = plan.pool;
  m.dtype = plan.norm.dtype;
  set_geometry(kOp, m, {x.size(0), x.size(1), x.size(2), x.size(3)}, g, ceil_mode);
  plan.groups = a.groups;
  plan.format = plan.pixels() == 1 ? MemoryFormat::ChannelsLast : kernel_format(m, format_of(x));
  m.channels_last = plan.format == MemoryFormat::ChannelsLast;
  m.channel_block = m.c;
  plan.rows = row_windows(m), plan.columns = column_windows(m);
  return plan;
}

// The length of a band of at most `most`, of which `fit` stay in the cache: shorter where few images would otherwise
// leave threads without work.
void cut(LRNMaxPool2dPlan& plan, int64_t most, int64_t fit, int64_t towers) {
  constexpr int64_t kTasksPerThread = 4;
  const int64_t wanted = kTasksPerThread * num_threads() / (plan.pool.n * towers) + 1;
  plan.length = std::clamp<int64_t>(std::min(fit, most / wanted), 1, most);
  plan.bands = towers * ((most + plan.length - 1) / plan.length);
}

// One thread's scratch: the band, the pooling's, and the normalization's, which must be zeros at first.
struct Work {
  char *band, *pool, *norm;
};
template <class F>
void run(const LRNMaxPool2dPlan& plan, int64_t pool_bytes, const F& f) {
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t band = lines(plan.held * plan.element()), norm = lines(scratch_bytes(plan.norm));
  const int64_t work = plan.pool.n * plan.pool.c * plan.pixels() / plan.tasks();
  parallel_for(plan.tasks(), pool_grain(4 * work), [&](int64_t begin, int64_t end) {
    char* at = static_cast<char*>(Scratch::get(band + norm + lines(pool_bytes)));
    std::fill_n(at + band, norm, 0);
    f(Work{at, at + band + norm, at + band}, begin, end);
  });
}

// Channels [c0, c1) of a tower of image n, and those whose gradients they need.
struct Channels {
  int64_t tower, c0, c1, lo, hi;  // tower: its first channel, counted over all images
};
Channels channels_of(const LRNMaxPool2dPlan& plan, int64_t task) {
  const LocalResponseNormParams& p = plan.norm;
  const int64_t per_tower = plan.bands / plan.groups, c0 = task % per_tower * plan.length;
  const int64_t c1 = std::min(c0 + plan.length, p.channels);
  return {task / per_tower * p.channels, c0, c1, std::max<int64_t>(c0 - p.after, 0),
          std::min(c1 + p.before, p.channels)};
}

const char* offset(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* offset(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

void forward_planes(const LRNMaxPool2dPlan& plan, const Work& work, int64_t begin, int64_t end) {
  const int64_t e = plan.element(), pixels = plan.pixels(), at_bytes = plan.pool.wide_argmax ? 4 : 1;
  for (int64_t task = begin; task < end; ++task) {
    const Channels c = channels_of(plan, task);
    LocalResponseNormParams p = plan.norm;
    p.x = offset(p.x, c.tower * pixels * e), p.out = work.band;
    p.first = c.c0, p.last = c.c1, p.out_shift = c.c0 * pixels;
    FASTCNN_CPU(local_response_norm)(p, 0, p.units, work.norm);

    MaxPool2dParams m = plan.pool;
    const int64_t out = (c.tower + c.c0) * m.oh * m.ow;
    m.n = 1, m.c = c.c1 - c.c0;
    m.x = work.band, m.y = offset(m.y, out * e);
    if (m.argmax) m.argmax = offset(m.argmax, out * at_bytes);
    FASTCNN_CPU(max_pool2d)(m, work.pool, 0, m.tasks());
  }
}

void forward_rows(const LRNMaxPool2dPlan& plan, const Work& work, int64_t begin, int64_t end) {
  const MaxPool2dParams& whole = plan.pool;
  const int64_t row = whole.w * whole.c, e = plan.element(), at_bytes = whole.wide_argmax ? 4 : 1;
  Windows windows(plan.length);
  int64_t image = -1, from = 0, to = 0;  // rows of the image that the band holds
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / plan.bands, q0 = task % plan.bands * plan.length;
    const int64_t q1 = std::min(q0 + plan.length, whole.oh);
    const int64_t r0 = plan.rows[q0].begin, r1 = plan.rows[q1 - 1].end;
    const int64_t kept = n == image && to > r0 ? to - r0 : 0;  // shared with the band before
    if (kept) std::copy_n(work.band + (r0 - from) * row * e, kept * row * e, work.band);
    image = n, from = r0, to = r1;

    LocalResponseNormParams p = plan.norm;
    p.x = offset(p.x, (n * whole.h + r0 + kept) * row * e), p.out = work.band + kept * row * e;
    p.outer = (r1 - r0 - kept) * whole.w * plan.groups;
    set_units(p, false);
    FASTCNN_CPU(local_response_norm)(p, 0, p.units, work.norm);

    MaxPool2dParams m = whole;
    const int64_t out = (n * m.oh + q0) * m.ow * m.c;
    for (int64_t q = q0; q < q1; ++q) {
      const Window& window = plan.rows[q];
      windows[q - q0] = {window.begin - r0, window.end - r0, window.first - r0};
    }
    m.n = 1, m.h = r1 - r0, m.oh = q1 - q0, m.ph += r0 - q0 * m.sh, m.rows = windows.data();
    m.x = work.band, m.y = offset(m.y, out * e);
    if (m.argmax) m.argmax = offset(m.argmax, out * at_bytes);
    FASTCNN_CPU(max_pool2d)(m, work.pool, 0, m.tasks());
  }
}

// One pixel lies in memory the same way in both formats, but only the wanted one's strides say which it is.
MemoryFormat format_of_output(const LRNMaxPool2dPlan& plan, int64_t pixels, MemoryFormat wanted) {
  return pixels == 1 ? wanted : plan.format;
}

Tensor forward(const Tensor& input, const NormArgs& a, const PoolGeometry& g, bool ceil_mode, Tensor* argmax) {
  LRNMaxPool2dPlan plan = make_plan(input, a, g, ceil_mode);
  LocalResponseNormParams& p = plan.norm;
  MaxPool2dParams& m = plan.pool;
  const MemoryFormat wanted = format_of(input), made = format_of_output(plan, m.oh * m.ow, wanted);
  const Tensor x = dense(input, plan.format);
  const Ints size{m.n, m.c, m.oh, m.ow};
  Tensor y = empty(size, x, made);
  if (argmax) *argmax = empty(size, x, made, m.wide_argmax ? ScalarType::Int : ScalarType::Byte);
  if (y.numel()) {
    p.x = x.const_data_ptr(), m.y = y.mutable_data_ptr();
    if (argmax) m.argmax = argmax->mutable_data_ptr();
    m.rows = plan.rows.data(), m.columns = plan.columns.data();
    if (m.channels_last) {
      const int64_t row = m.w * m.c, span = (m.kh - 1) * m.dh + 1;
      cut(plan, m.oh, (kRowsBytes / (row * plan.element()) - span) / m.sh + 1, 1);
      plan.held = std::min((plan.length - 1) * m.sh + span, m.h) * row;
      p.inner = 1, p.outer = plan.pixels() * a.groups;
    } else {
      cut(plan, p.channels, kPlanesBytes / (plan.pixels() * plan.element()), a.groups);
      plan.held = plan.length * plan.pixels();
      p.inner = plan.pixels(), p.outer = 1;
    }
    set_units(p, false);
    run(plan, m.scratch_bytes(), [&](const Work& work, int64_t begin, int64_t end) {
      m.channels_last ? forward_rows(plan, work, begin, end) : forward_planes(plan, work, begin, end);
    });
  }
  if (argmax) *argmax = dense(*argmax, wanted);
  return dense(y, wanted);
}

void backward_planes(const LRNMaxPool2dPlan& plan, const Work& work, int64_t begin, int64_t end) {
  const int64_t e = plan.element(), pixels = plan.pixels(), at_bytes = plan.pool.wide_argmax ? 4 : 1;
  for (int64_t task = begin; task < end; ++task) {
    const Channels c = channels_of(plan, task);
    MaxPool2dParams m = plan.pool;
    const int64_t out = (c.tower + c.lo) * m.oh * m.ow;
    m.n = 1, m.c = c.hi - c.lo;
    m.x = offset(m.x, out * e), m.argmax = offset(m.argmax, out * at_bytes), m.y = work.band;
    FASTCNN_CPU(max_pool2d_backward)(m, work.pool, 0, m.backward_tasks());

    LocalResponseNormParams p = plan.norm;
    p.x = offset(p.x, c.tower * pixels * e), p.out = offset(p.out, c.tower * pixels * e);
    p.g = work.band, p.g_shift = c.lo * pixels, p.first = c.c0, p.last = c.c1;
    FASTCNN_CPU(local_response_norm_backward)(p, 0, p.units, work.norm);
  }
}

void backward_rows(const LRNMaxPool2dPlan& plan, const Work& work, int64_t begin, int64_t end) {
  const MaxPool2dParams& whole = plan.pool;
  const int64_t row = whole.w * whole.c, e = plan.element(), at_bytes = whole.wide_argmax ? 4 : 1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / plan.bands, r0 = task % plan.bands * plan.length;
    const int64_t r1 = std::min(r0 + plan.length, whole.h);
    MaxPool2dParams m = whole;
    const int64_t out = n * m.oh * m.ow * m.c;
    m.n = 1, m.h = r1 - r0, m.ph += r0, m.rows += r0;
    m.x = offset(m.x, out * e), m.argmax = offset(m.argmax, out * at_bytes), m.y = work.band;
    FASTCNN_CPU(max_pool2d_backward)(m, work.pool, 0, m.backward_tasks());

    LocalResponseNormParams p = plan.norm;
    const int64_t in = (n * whole.h + r0) * row;
    p.x = offset(p.x, in * e), p.out = offset(p.out, in * e), p.g = work.band;
    p.outer = m.h * m.w * plan.groups;
    set_units(p, true);
    FASTCNN_CPU(local_response_norm_backward)(p, 0, p.units, work.norm);
  }
}

Tensor backward(const Tensor& grad, const Tensor& argmax, const Tensor& input, const NormArgs& a, const PoolGeometry& g,
                bool ceil_mode) {
  LRNMaxPool2dPlan plan = make_plan(input, a, g, ceil_mode);
  LocalResponseNormParams& p = plan.norm;
  MaxPool2dParams& m = plan.pool;
  check_argmax(kOp, m, argmax);
  check_same_dtype(kOp, "grad", input, grad);
  check_pool_grad(kOp, grad, argmax);
  const Tensor x = dense(input, plan.format), at = dense(argmax, plan.format);
  const Tensor gy = dense(grad, plan.format);
  check_positions(kOp, m, at);
  const MemoryFormat wanted = format_of(input);
  Tensor gx = empty({m.n, m.c, m.h, m.w}, x, format_of_output(plan, plan.pixels(), wanted));
  if (gx.numel()) {
    p.x = x.const_data_ptr(), p.out = gx.mutable_data_ptr();
    m.x = gy.const_data_ptr(), m.argmax = const_cast<void*>(at.const_data_ptr());
    plan.rows = transposed(plan.rows, m.h), plan.columns = transposed(plan.columns, m.w);
    m.rows = plan.rows.data(), m.columns = plan.columns.data();
    if (m.channels_last) {
      const int64_t row = m.w * m.c;
      cut(plan, m.h, kRowsBytes / (row * plan.element()), 1);
      if (m.scatters()) plan.length = m.h, plan.bands = 1;  // windows look for their places in the whole image
      plan.held = plan.length * row;
      p.inner = 1, p.outer = plan.pixels() * a.groups;
    } else {
      const int64_t around = p.before + p.after;
      cut(plan, p.channels, std::max(kPlanesBytes / (plan.pixels() * plan.element()) - around, 2 * around), a.groups);
      plan.held = std::min(plan.length + around, p.channels) * plan.pixels();
      p.inner = plan.pixels(), p.outer = 1;
    }
    set_units(p, true);
    run(plan, m.backward_scratch_bytes(), [&](const Work& work, int64_t begin, int64_t end) {
      m.channels_last ? backward_rows(plan, work, begin, end) : backward_planes(plan, work, begin, end);
    });
  }
  return dense(gx, wanted);
}

#define ARGUMENTS                                                                                   \
  int64_t size, double alpha, double beta, double k, int64_t groups, bool relu, const Ints &kernel, \
      const Ints &stride, const Ints &padding, const Ints &dilation, bool ceil_mode
#define GEOMETRY \
  NormArgs{size, alpha, beta, k, groups, relu}, pool_geometry(kOp, kernel, stride, padding, dilation), ceil_mode

std::tuple<Tensor, Tensor> lrn_max_pool2d(const Tensor& x, ARGUMENTS) {
  Tensor argmax;
  Tensor y = forward(x, GEOMETRY, &argmax);
  return {y, argmax};
}

Tensor lrn_max_pool2d_values(const Tensor& x, ARGUMENTS) { return forward(x, GEOMETRY, nullptr); }

Tensor lrn_max_pool2d_backward(const Tensor& grad, const Tensor& argmax, const Tensor& x, ARGUMENTS) {
  return backward(grad, argmax, x, GEOMETRY);
}

}  // namespace
}  // namespace fastcnn

#define SCHEMA                                                                                       \
  "SymInt size, float alpha, float beta, float k, SymInt groups, bool relu, SymInt[2] kernel_size, " \
  "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
STABLE_TORCH_LIBRARY_FRAGMENT(fastcnn, m) {
  m.def("lrn_max_pool2d(Tensor x, " SCHEMA ") -> (Tensor, Tensor)");
  m.def("_lrn_max_pool2d(Tensor x, " SCHEMA ") -> (Tensor, Tensor)");  // without autograd
  m.def("_lrn_max_pool2d_values(Tensor x, " SCHEMA ") -> Tensor");     // inference: no argmax is written
  m.def("lrn_max_pool2d_backward(Tensor grad, Tensor argmax, Tensor x, " SCHEMA ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("lrn_max_pool2d", TORCH_BOX(&fastcnn::lrn_max_pool2d));
  m.impl("_lrn_max_pool2d", TORCH_BOX(&fastcnn::lrn_max_pool2d));
  m.impl("_lrn_max_pool2d_values", TORCH_BOX(&fastcnn::lrn_max_pool2d_values));
  m.impl("lrn_max_pool2d_backward", TORCH_BOX(&fastcnn::lrn_max_pool2d_backward));
}
