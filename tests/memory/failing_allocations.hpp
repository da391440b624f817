// The program's operator new, which can be told to fail: the way to see what every allocation's
// failure does.
#pragma once

#include <cstddef>

namespace zipcache::test {

enum class Failing { Once, Forever };

// From now on the `nth` allocation (1 is the next one) throws std::bad_alloc, or it and all after
// it.
void fail_allocation(size_t nth, Failing how);
// Ends that; true if an allocation failed.
bool stop_failing();
// Allocations that have not been given back.
size_t live_allocations();

}  // namespace zipcache::test
