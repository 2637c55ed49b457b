/*
 * Disks that are full: loaded into the test's server ahead of libc (LD_PRELOAD).
 *
 *	OUTBOX_DISK	a file of two bytes, mapped by every process: not 0, and no file of base/ (the first), or of pg_wal/ (the second), can grow
 *
 * What is written into a file where it has bytes already succeeds, as on a disk that is full.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536

static volatile char *full;
static char disk_of[FILES];		/* by descriptor: 0 none, else 1 + the byte of its disk */

__attribute__((constructor)) static void
map_it(void)
{
	const char *path = getenv("OUTBOX_DISK");
	int			fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	void	   *mapped;

	if (fd < 0)
		return;
	mapped = mmap(NULL, 2, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		full = mapped;
}

static void *
real(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

static int
opened(int fd, const char *path)
{
	if (fd >= 0 && fd < FILES)
		disk_of[fd] = strncmp(path, "base/", 5) == 0 ? 1 : strncmp(path, "pg_wal/", 7) == 0 ? 2 : 0;
	return fd;
}

/* Would a write up to here make the file grow, on a disk that is full? */
static int
has_no_room(int fd, off_t end)
{
	struct stat file;

	if (full == NULL || fd < 0 || fd >= FILES || disk_of[fd] == 0 || !full[disk_of[fd] - 1] || fstat(fd, &file) != 0)
		return 0;
	return end > file.st_size;
}

static int
refuse(void)
{
	errno = ENOSPC;
	return -1;
}

static off_t
total(const struct iovec *parts, int n)
{
	off_t		size = 0;

	for (int i = 0; i < n; i++)
		size += parts[i].iov_len;
	return size;
}

#define OPEN(name) \
int name(const char *path, int flags, ...) \
{ \
	static int	(*next) (const char *, int, ...); \
	va_list		arguments; \
	mode_t		mode; \
\
	if (next == NULL) \
		next = real(#name); \
	va_start(arguments, flags); \
	mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(arguments, mode_t) : 0; \
	va_end(arguments); \
	return opened(next(path, flags, mode), path); \
}

OPEN(open)
OPEN(open64)

int
close(int fd)
{
	static int	(*next) (int);

	if (next == NULL)
		next = real("close");
	if (fd >= 0 && fd < FILES)
		disk_of[fd] = 0;
	return next(fd);
}

#define PWRITE(name) \
ssize_t name(int fd, const void *data, size_t size, off_t at) \
{ \
	static ssize_t (*next) (int, const void *, size_t, off_t); \
\
	if (next == NULL) \
		next = real(#name); \
	return has_no_room(fd, at + size) ? refuse() : next(fd, data, size, at); \
}

PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name) \
ssize_t name(int fd, const struct iovec *parts, int n, off_t at) \
{ \
	static ssize_t (*next) (int, const struct iovec *, int, off_t); \
\
	if (next == NULL) \
		next = real(#name); \
	return has_no_room(fd, at + total(parts, n)) ? refuse() : next(fd, parts, n, at); \
}

PWRITEV(pwritev)
PWRITEV(pwritev64)

/* These two return what went wrong. */
#define ALLOCATE(name) \
int name(int fd, off_t at, off_t size) \
{ \
	static int	(*next) (int, off_t, off_t); \
\
	if (next == NULL) \
		next = real(#name); \
	return has_no_room(fd, at + size) ? ENOSPC : next(fd, at, size); \
}

ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)

ssize_t
write(int fd, const void *data, size_t size)
{
	static ssize_t (*next) (int, const void *, size_t);

	if (next == NULL)
		next = real("write");
	return fd >= 0 && fd < FILES && disk_of[fd] != 0 && has_no_room(fd, lseek(fd, 0, SEEK_CUR) + size) ? refuse() : next(fd, data, size);
}
