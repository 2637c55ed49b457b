/*
 * Memory that is counted, and runs out: loaded into the test's server ahead of libc (LD_PRELOAD).
 *
 *	OUTBOX_MALLOC	a file of three int64, mapped by every process: the process that is meant; how many of its allocations from now on until one fails (counted down to 0);
 *					how many bytes it has taken since then, less those it has given back
 *
 * One allocation fails, as malloc() fails: PostgreSQL, libcurl and OpenSSL see what they would see if there were no memory for a moment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void __libc_free(void *memory);

#define SIZE (3 * sizeof(int64_t))

static volatile int64_t *shared;	/* process, countdown, bytes */

__attribute__((constructor)) static void
map_it(void)
{
	const char *path = getenv("OUTBOX_MALLOC");
	int			fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	void	   *mapped;

	if (fd < 0)
		return;
	mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		shared = mapped;
}

static int
is_meant(void)
{
	return shared != NULL && shared[0] == getpid();
}

static int
fails(void)
{
	if (!is_meant() || shared[1] <= 0 || __atomic_sub_fetch(&shared[1], 1, __ATOMIC_SEQ_CST) != 0)
		return 0;
	errno = ENOMEM;
	return 1;
}

static void *
taken(void *memory)
{
	if (memory != NULL && is_meant())
		__atomic_add_fetch(&shared[2], (int64_t) malloc_usable_size(memory), __ATOMIC_SEQ_CST);
	return memory;
}

static void
given_back(void *memory)
{
	if (memory != NULL && is_meant())
		__atomic_sub_fetch(&shared[2], (int64_t) malloc_usable_size(memory), __ATOMIC_SEQ_CST);
}

void *
malloc(size_t size)
{
	return fails() ? NULL : taken(__libc_malloc(size));
}

void *
calloc(size_t n, size_t size)
{
	return fails() ? NULL : taken(__libc_calloc(n, size));
}

void *
realloc(void *old, size_t size)
{
	void	   *new;

	if (fails())
		return NULL;
	given_back(old);
	new = __libc_realloc(old, size);
	if (new == NULL && size > 0)
		(void) taken(old);
	return taken(new);
}

void
free(void *memory)
{
	given_back(memory);
	__libc_free(memory);
}
