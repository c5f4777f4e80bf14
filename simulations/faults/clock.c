/* LD_PRELOAD: a wall clock that is off by as many nanoseconds as the file CLOCK_SKEW holds. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile long long *skew;

__attribute__((constructor)) static void open_skew(void) {
    const char *path = getenv("CLOCK_SKEW");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *skew, PROT_READ, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) skew = memory;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && clock == CLOCK_REALTIME && skew) {
        long long shown = now->tv_sec * SECOND + now->tv_nsec + *skew;
        now->tv_sec = shown / SECOND;
        now->tv_nsec = shown % SECOND;
    }
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec shown;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &shown);
    now->tv_sec = shown.tv_sec;
    now->tv_usec = shown.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec shown;
    clock_gettime(CLOCK_REALTIME, &shown);
    if (into) *into = shown.tv_sec;
    return shown.tv_sec;
}
