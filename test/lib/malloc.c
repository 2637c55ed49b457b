/*
 * Memory that is counted, and runs out: loaded into the test's server ahead of libc (LD_PRELOAD).
 *
 *	OUTBOX_MALLOC	a file of three int64, mapped by every process: the process that is meant; how many of its allocations from now on until one fails (counted down to 0);
 *					how many bytes it has taken since then, less those it has given back; PostgreSQL's program itself aside, which counts its own
 *
 * One allocation fails, as malloc() fails: PostgreSQL, libcurl and OpenSSL see what they would see if there were no memory for a moment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void __libc_free(void *memory);

#define SIZE (3 * sizeof(int64_t))

static volatile int64_t *shared;	/* process, countdown, bytes */
static uintptr_t program_begins,
			program_ends;

/* The first object is the program. */
static int
note_program(struct dl_phdr_info *object, size_t size, void *arg)
{
	for (int i = 0; i < object->dlpi_phnum; i++)
	{
		uintptr_t	end = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr + object->dlpi_phdr[i].p_memsz;

		if (object->dlpi_phdr[i].p_type == PT_LOAD && end > program_ends)
			program_ends = end;
	}
	program_begins = object->dlpi_addr;
	(void) size;
	(void) arg;
	return 1;
}

__attribute__((constructor)) static void
map_it(void)
{
	const char *path = getenv("OUTBOX_MALLOC");
	int			fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	void	   *mapped;

	if (fd < 0)
		return;
	dl_iterate_phdr(note_program, NULL);
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

/* Who calls: */
#define CALLER ((uintptr_t) __builtin_return_address(0))

static void
count(const void *memory, int sign, uintptr_t caller)
{
	if (memory != NULL && is_meant() && (caller < program_begins || caller >= program_ends))
		__atomic_add_fetch(&shared[2], sign * (int64_t) malloc_usable_size((void *) memory), __ATOMIC_SEQ_CST);
}

void *
malloc(size_t size)
{
	void	   *memory = fails() ? NULL : __libc_malloc(size);

	count(memory, 1, CALLER);
	return memory;
}

void *
calloc(size_t n, size_t size)
{
	void	   *memory = fails() ? NULL : __libc_calloc(n, size);

	count(memory, 1, CALLER);
	return memory;
}

/* So that it is not libc who calls: what PostgreSQL has from strdup() (values of settings) it gives back itself. */
char *
strdup(const char *string)
{
	size_t		size = strlen(string) + 1;
	void	   *memory = fails() ? NULL : __libc_malloc(size);

	count(memory, 1, CALLER);
	return memory == NULL ? NULL : memcpy(memory, string, size);
}

void *
realloc(void *old, size_t size)
{
	void	   *memory;

	if (fails())
		return NULL;
	count(old, -1, CALLER);
	memory = __libc_realloc(old, size);
	count(memory == NULL && size > 0 ? old : memory, 1, CALLER);
	return memory;
}

void
free(void *memory)
{
	count(memory, -1, CALLER);
	__libc_free(memory);
}
