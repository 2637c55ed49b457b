/* What receiver and producer have in common: a clock, a growing buffer, dice that fall the same way for the same seed, and a way out. */
#ifndef FAULT_TOOLS_H
#define FAULT_TOOLS_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void
fail(const char *format, ...)
{
	va_list		arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(2);
}

static inline void *
check_memory(void *pointer)
{
	if (!pointer)
		fail("out of memory");
	return pointer;
}

/* Microseconds of the Unix clock. */
static inline int64_t
now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_REALTIME, &at);
	return (int64_t) at.tv_sec * 1000000 + at.tv_nsec / 1000;
}

/* splitmix64's finisher. */
static inline uint64_t
mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static inline uint64_t
hash_of(const char *bytes, size_t length)
{
	uint64_t	hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char) bytes[i]) * 0x100000001b3;
	return mix(hash);
}

typedef struct Buffer
{
	char	   *data;
	size_t		length,
				capacity;
} Buffer;

static inline void
append(Buffer *buffer, const char *bytes, size_t length)
{
	if (buffer->length + length + 1 > buffer->capacity)
	{
		buffer->capacity = (buffer->length + length + 1) * 2;
		buffer->data = check_memory(realloc(buffer->data, buffer->capacity));
	}
	memcpy(buffer->data + buffer->length, bytes, length);
	buffer->length += length;
	buffer->data[buffer->length] = '\0';
}

__attribute__((format(printf, 2, 3))) static inline void
appendf(Buffer *buffer, const char *format, ...)
{
	char		text[4096];
	va_list		arguments;
	int			length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (length < 0 || (size_t) length >= sizeof(text))
		fail("a line is too long");
	append(buffer, text, length);
}

#endif
