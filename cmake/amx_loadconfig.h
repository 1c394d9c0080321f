/* Force-included into ggml's CPU backend.
 *
 * GCC before 14 (and before the backports in 11.5, 12.4 and 13.3) declares that _tile_loadconfig reads one
 * pointer's worth of the 64-byte tile configuration. The optimiser then drops the stores to the other 56
 * bytes as dead, and the CPU meets an invalid configuration: SIGILL at the first matrix product on a machine
 * with AMX. This replacement names all 64 bytes as the operand.
 */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14 && defined(__x86_64__) && defined(__AMX_TILE__)
#include <immintrin.h>

static inline void inferd_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char (*)[64])config));
}

#define _tile_loadconfig(config) inferd_tile_loadconfig(config)
#endif
