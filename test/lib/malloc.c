/*
 * Memory that runs out: loaded into the test's server ahead of libc (LD_PRELOAD).
 *
 *	OUTBOX_MALLOC	a file of 16 bytes, mapped by every process: the process (int64) whose allocations are counted, and how many of them from now on until one fails (int64, counted down to 0)
 *
 * One allocation fails, as malloc() fails: PostgreSQL, libcurl and OpenSSL see what they would see if there were no memory for a moment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static volatile int64_t *shared;	/* process, countdown */

__attribute__((constructor)) static void
map_it(void)
{
	const char *path = getenv("OUTBOX_MALLOC");
	int			fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	void	   *mapped;

	if (fd < 0)
		return;
	mapped = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		shared = mapped;
}

static int
fails(void)
{
	if (shared == NULL || shared[1] <= 0 || shared[0] != getpid() || __atomic_sub_fetch(&shared[1], 1, __ATOMIC_SEQ_CST) != 0)
		return 0;
	errno = ENOMEM;
	return 1;
}

void *
malloc(size_t size)
{
	return fails() ? NULL : __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
	return fails() ? NULL : __libc_calloc(n, size);
}

void *
realloc(void *old, size_t size)
{
	return fails() ? NULL : __libc_realloc(old, size);
}
