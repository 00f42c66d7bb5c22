// How a block of the fused normalization and pooling walks rows of channels, in global and in shared memory.
#pragma once
#include "cuda/device.cuh"
#include "cuda/local_response_norm_math.cuh"
#include "cuda/max_pool2d_window.cuh"

namespace fastcnn::cuda {

// How a block's threads walk lines of at most `longest` elements by whole sectors: a line may begin anywhere in its
// first one, so it takes `padded` lanes, of which those are idle that belong to another line.
struct Lines {
  int at_once;
  Divisor by_padded;

  Lines() = default;
  Lines(int64_t longest, int64_t element_size, bool aligned) {
    const int64_t sector = kSectorBytes / element_size;
    const int64_t padded = ceil_div(longest + (aligned ? 0 : sector - 1), sector) * sector;
    at_once = padded < kFusedThreads ? int(kFusedThreads / padded) : 1, by_padded = Divisor(padded);
  }
};

// In elements, from an image to the next, a pixel, a channel.
struct Steps {
  int64_t image, pixel, channel;
};

// A block takes `chunk` channels of a tower of one image and walks down `length` rows (forward: of y; backward: of x).
// band: rows of y that move together.
struct Strip {
  MaxPool2dGeometry pool;
  const void* x;
  void* dx;
  int64_t channels, towers;  // channels of one tower
  Steps x_steps, y_steps;
  int chunk, before, after, length, band, row_elements, runs;
  bool channels_last, relu;
  double alpha, k, factor;  // factor: 2 alpha beta
  Divisor by_chunks, by_lengths, by_towers, by_width, by_out_width, by_slots;
  Lines in, out;  // of a row of x, and of a band of y
};

// Channels [c0, c1) of the block's tower, whose first channel in its image is `first`.
struct Part {
  int64_t image, first;
  int c0, c1, row;

  __device__ explicit Part(const Strip& s) {
    uint32_t chunk, tower, strip;
    const uint32_t rest = s.by_towers.divide(s.by_chunks.divide(blockIdx.x, chunk), tower);
    image = s.by_lengths.divide(rest, strip);
    first = int64_t(tower) * s.channels, c0 = int(chunk) * s.chunk, row = int(strip) * s.length;
    c1 = c0 + s.chunk < s.channels ? c0 + s.chunk : int(s.channels);
  }
  // The tower's first channel in the block's image of a tensor.
  template <class T>
  __device__ T* of(T* tensor, const Steps& steps) const {
    return tensor + image * steps.image + first * steps.channel;
  }
};

__device__ inline int at_least(int v, int low) { return v < low ? low : v; }
__device__ inline int at_most(int v, int high) { return v > high ? high : v; }

// Channels of NHWC behind each other in a pixel of a row in shared memory: an odd number, so that lanes at neighbouring
// pixels meet different banks.
__host__ __device__ inline int odd(int channels) { return channels | 1; }

// Elements that pixels take in shared memory.
__host__ __device__ inline int64_t elements_of(bool channels_last, int64_t pixels, int64_t channels) {
  return pixels * (channels_last ? odd(int(channels)) : channels);
}

// Where channels [first, first + count) of some pixels lie in shared memory: in memory's order.
struct Place {
  int first, pixel, channel, size;  // pixel, channel: steps from one to the next; size: elements

  __device__ Place(const Strip& s, int pixels, int from, int count)
      : first(from), size(int(elements_of(s.channels_last, pixels, count))) {
    pixel = s.channels_last ? odd(count) : 1, channel = s.channels_last ? 1 : pixels;
  }
  __device__ int at(int w, int c) const { return w * pixel + (c - first) * channel; }
};

// Channels [from, from + channels) of neighbouring pixels in global memory, as lines of neighbouring elements.
template <class T>
struct Row {
  T* first;
  int64_t step;  // from line to line
  int from, count, length;
  bool channels_last;

  // tower: its first channel of the image.
  __device__ Row(const Strip& s, T* tower, const Steps& steps, int64_t first_pixel, int pixels, int first_channel,
                 int channels)
      : from(first_channel), channels_last(s.channels_last) {
    first = tower + first_pixel * steps.pixel + from * steps.channel;
    step = channels_last ? steps.pixel : steps.channel;
    count = channels_last ? pixels : channels, length = channels_last ? channels : pixels;
  }
  // f(exists, element, pixel, channel) for each, the pixels counted from the first; by all threads, also where there is
  // none, so that accesses of a warp's lanes stay one request.
  template <class F>
  __device__ void each(const Lines& s, const F& f) const {
    uint32_t lane;
    const int thread_line = int(s.by_padded.divide(threadIdx.x, lane));
    if (thread_line >= s.at_once) return;
    for (; lane < s.by_padded.d; lane += kFusedThreads) {  // once, if a line has not more lanes than threads
      T* start = first + thread_line * step;
      for (int line = thread_line; line < count; line += s.at_once, start += s.at_once * step) {
        const int i = int(lane) - behind_sector(start);
        f(uint32_t(i) < uint32_t(length), start + i, channels_last ? line : i, from + (channels_last ? i : line));
      }
    }
  }
};

// f(pixel, begin, end) for channels [from, to) of each pixel of x's rows in s.runs runs: lanes take neighbouring
// pixels.
template <class F>
__device__ __forceinline__ void each_run(const Strip& s, int from, int to, const F& f) {
  const int length = (to - from + s.runs - 1) / s.runs;
  for (int task = threadIdx.x; task < s.pool.w * s.runs; task += kFusedThreads) {
    uint32_t pixel;
    const int begin = from + int(s.by_width.divide(task, pixel)) * length;
    f(int(pixel), begin, at_most(begin + length, to));
  }
}

// f(pixel, channel) for every element of some pixels in shared memory, lanes at neighbours of memory's order. The only
// divisions are at the start.
template <class F>
__device__ __forceinline__ void each_element(const Strip& s, int pixels, int from, int channels, const F& f) {
  const int line = s.channels_last ? channels : pixels, lines = s.channels_last ? pixels : channels;
  const int down = kFusedThreads / line, along = kFusedThreads - down * line;
  int slow = threadIdx.x / line, fast = threadIdx.x - slow * line;
  while (slow < lines) {
    f(s.channels_last ? slow : fast, from + (s.channels_last ? fast : slow));
    slow += down, fast += along;
    if (fast >= line) fast -= line, ++slow;
  }
}

// The values of one pixel around channel c, of [lo, hi), as c goes up by one from next() to next(): in registers, of
// two channels to either side.
template <class A>
class FiveChannels {
 public:
  __device__ FiveChannels(const A* values, int channel_step, int low, int high, int c, int, int)
      : at(values + (c + 1 - low) * channel_step), step(channel_step), next_channel(c + 2), lo(low), hi(high) {
    window[0] = 0;  // is left behind by the first step
#pragma unroll
    for (int j = 1; j < 5; ++j) {
      const int channel = c - 3 + j;
      window[j] = load_shared_if(channel >= lo && channel < hi, at + (j - 4) * step);
    }
  }
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int j = 0; j < 4; ++j) window[j] = window[j + 1];
    at += step;
    window[4] = load_shared_if(next_channel < hi, at);
    ++next_channel;
  }
  __device__ A centre() const { return window[2]; }
  template <class F>
  __device__ __forceinline__ A sum(const F& f) const {
    A sum = 0;
#pragma unroll
    for (int j = 0; j < 5; ++j) sum += f(window[j]);
    return sum;
  }

 private:
  const A* at;
  int step, next_channel, lo, hi;
  A window[5];
};

// The same of any number, each read anew.
template <class A>
class AnyChannels {
 public:
  __device__ AnyChannels(const A* values, int channel_step, int low, int high, int c, int before_c, int after_c)
      : at(values - low * channel_step),
        step(channel_step),
        lo(low),
        hi(high),
        channel(c - 1),
        before(before_c),
        after(after_c) {}
  __device__ void next() { ++channel; }
  __device__ A centre() const { return load_shared(at + channel * step); }
  template <class F>
  __device__ A sum(const F& f) const {
    A sum = 0;
    for (int c = at_least(channel - before, lo); c < at_most(channel + after + 1, hi); ++c)
      sum += f(load_shared(at + c * step));
    return sum;
  }

 private:
  const A* at;
  int step, lo, hi, channel, before, after;
};

// What every published network does: the power 3/4, of five channels, before windows of three by three.
struct PublishedShape {
  template <class A>
  using Channels = FiveChannels<A>;
  static constexpr int kWindow = 3;
  static constexpr bool kDilated = false;
  ThreeQuarters power;
};
template <class Power>
struct AnyShape {
  template <class A>
  using Channels = AnyChannels<A>;
  static constexpr int kWindow = 0;
  static constexpr bool kDilated = true;
  Power power;
};

}  // namespace fastcnn::cuda
