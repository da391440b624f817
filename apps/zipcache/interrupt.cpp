// Ctrl-C and the termination signal.
#include "interrupt.hpp"

#include <csignal>

namespace zipcache::cli {

namespace {

volatile std::sig_atomic_t the_signal = 0;

void on_signal(int number) { the_signal = number; }

}  // namespace

void watch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  // Back to the default after the first, so that the second ends the process; calls go on.
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return the_signal != 0; }

int interrupt_exit_status() { return 128 + (the_signal != 0 ? the_signal : SIGINT); }

}  // namespace zipcache::cli
