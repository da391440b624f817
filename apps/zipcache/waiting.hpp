// How idle worker threads wait: they spin shortly, then sleep, unless the user chose otherwise.
//
// llama.cpp's OpenMP workers spin for milliseconds between operations. Where other programs, or two
// engines in one process, share the processor, that takes the time that the working thread needs. A
// spin shorter than an operation costs little, and spares a woken thread's 30 to 50 microseconds
// when the next operation follows at once (docs/measurements.md).
#pragma once

namespace zipcache::cli {

// Starts this program again with GOMP_SPINCOUNT=2000 unless it, or OMP_WAIT_POLICY, is set: OpenMP
// reads them before main() begins. Returns when there is nothing to do or a new start is impossible.
void wait_shortly(char** argv);

// "passive" or "active" where OpenMP was told so, "short" where it spins a given number of times,
// otherwise "default".
const char* wait_policy();

}  // namespace zipcache::cli
