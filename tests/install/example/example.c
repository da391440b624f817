/* Uses an installed zipcache from C: prints the version that the library says it is. */
#include <stdio.h>
#include <zipcache/zipcache.h>

int main(void) {
  printf("zipcache %s\n", zipcache_version());
  return 0;
}
