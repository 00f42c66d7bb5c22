// cp.async: lazily, a copy lands when its thread waits for its group, and its destination is NaN until then; eagerly,
// it lands at once. A GPU may do either, and anything between.
#pragma once
#include <cstddef>

#include "site.h"

namespace simt {

void copy_async(void* shared, const void* global, bool valid, size_t bytes, const Site& site);
void commit_copies();
void wait_copies(size_t pending_groups);

}  // namespace simt
