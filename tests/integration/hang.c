// A device that hangs: while the file named by HANG_WHILE is there, reads and writes of a node's slot files do not come back.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static void hang(void) {
  const char* flag = getenv("HANG_WHILE");
  while (flag && access(flag, F_OK) == 0) usleep(10000);
}

typedef ssize_t (*move)(int, const struct iovec*, int, off_t);
#define MOVE(name)                                                              \
  ssize_t name(int fd, const struct iovec* pieces, int count, off_t offset) { \
    hang();                                                                     \
    return ((move)dlsym(RTLD_NEXT, #name))(fd, pieces, count, offset);          \
  }
MOVE(preadv)
MOVE(preadv64)
MOVE(pwritev)
MOVE(pwritev64)
