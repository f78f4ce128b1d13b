/* Counts the changes that a process makes to files below one folder, and ends the process at one of them, or refuses
 * that one and all that follow.
 *
 * Loaded with LD_PRELOAD it stands before the C library's functions, whoever calls them: Python, NumPy, Polars,
 * safetensors or TensorStore. At the change that was named the process is sent the signal; of a write the first half is
 * made before. Where a number of an error stands in the signal's place, negative, the changes fail with it; a disk that
 * is full, or over its quota, still renames and removes. Nothing is counted before `dying_arm` was called, and nothing in programs that the process starts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static size_t length;
static long end;
static int by;
static atomic_long *count; /* in memory that outlives the process */

void dying_arm(const char *folder, long at, int number, void *shared) {
    strncpy(below, folder, sizeof below - 1);
    length = strlen(below), end = at, by = number, count = shared;
}

static int inside(const char *place) {
    return strncmp(place, below, length) == 0 && (place[length] == '/' || place[length] == 0);
}

/* Whether a path, from an open folder or the working one, leads there. */
static int beneath(int folder, const char *path) {
    char link[64], place[2 * PATH_MAX];
    if (count == NULL || path == NULL) return 0;
    if (path[0] == '/') return inside(path);
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, place, PATH_MAX - 1);
    if (size < 0) return 0;
    snprintf(place + size, sizeof place - size, "/%s", path);
    return inside(place);
}

/* Whether an open file lies there. */
static int there(int file) {
    char link[64], place[PATH_MAX];
    if (count == NULL || file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, place, PATH_MAX - 1);
    if (size < 0) return 0;
    place[size] = 0;
    return inside(place);
}

static int reached(void) {
    long number = atomic_fetch_add(count, 1);
    return number == end || (by < 0 && end >= 0 && number > end);
}

static int refused(int takes_space) {
    if (by >= 0 || (!takes_space && (-by == ENOSPC || -by == EDQUOT))) return 0;
    errno = -by;
    return 1;
}

static void finish(void) { kill(getpid(), by); }

/* Whether the change is refused; a process that ends at it does not return. */
static int change(int folder, const char *path, int takes_space) {
    if (!beneath(folder, path) || !reached()) return 0;
    if (by < 0) return refused(takes_space);
    finish();
    return 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE \
    mode_t mode = 0; \
    if (flags & O_CREAT) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE if ((flags & (O_CREAT | O_TRUNC)) && change(AT_FDCWD, path, 1)) return -1; \
        return NEXT(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE if ((flags & (O_CREAT | O_TRUNC)) && change(folder, path, 1)) return -1; \
        return NEXT(name)(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* A signal that the process outlives finds a short write, which callers go on from. */
ssize_t write(int file, const void *bytes, size_t size) {
    if (there(file) && reached()) {
        if (refused(1)) return -1;
        ssize_t half = size < 2 ? 0 : NEXT(write)(file, bytes, size / 2);
        finish();
        if (half > 0) return half;
    }
    return NEXT(write)(file, bytes, size);
}

#define PWRITE(name, offset_t) \
    ssize_t name(int file, const void *bytes, size_t size, offset_t offset) { \
        if (there(file) && reached()) { \
            if (refused(1)) return -1; \
            ssize_t half = size < 2 ? 0 : NEXT(name)(file, bytes, size / 2, offset); \
            finish(); \
            if (half > 0) return half; \
        } \
        return NEXT(name)(file, bytes, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int number) {
    if (there(file) && reached()) {
        if (refused(1)) return -1;
        ssize_t half = number < 2 ? 0 : NEXT(writev)(file, parts, number / 2);
        finish();
        if (half > 0) return half;
    }
    return NEXT(writev)(file, parts, number);
}

int rename(const char *old, const char *path) {
    if (change(AT_FDCWD, path, 0)) return -1;
    return NEXT(rename)(old, path);
}

int renameat(int from, const char *old, int folder, const char *path) {
    if (change(folder, path, 0)) return -1;
    return NEXT(renameat)(from, old, folder, path);
}

int renameat2(int from, const char *old, int folder, const char *path, unsigned flags) {
    if (change(folder, path, 0)) return -1;
    return NEXT(renameat2)(from, old, folder, path, flags);
}

int unlink(const char *path) {
    if (change(AT_FDCWD, path, 0)) return -1;
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    if (change(folder, path, 0)) return -1;
    return NEXT(unlinkat)(folder, path, flags);
}

int rmdir(const char *path) {
    if (change(AT_FDCWD, path, 0)) return -1;
    return NEXT(rmdir)(path);
}

int mkdir(const char *path, mode_t mode) {
    if (change(AT_FDCWD, path, 1)) return -1;
    return NEXT(mkdir)(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    if (change(folder, path, 1)) return -1;
    return NEXT(mkdirat)(folder, path, mode);
}

int ftruncate(int file, off_t size) {
    if (there(file) && reached()) {
        if (refused(1)) return -1;
        finish();
    }
    return NEXT(ftruncate)(file, size);
}

int ftruncate64(int file, off64_t size) {
    if (there(file) && reached()) {
        if (refused(1)) return -1;
        finish();
    }
    return NEXT(ftruncate64)(file, size);
}
