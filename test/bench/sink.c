/*
 * A receiver of webhooks that is never the bottleneck and tells when each event came.
 *
 *   sink PORT FILE EVENTS [PARENT]
 *
 * One thread, epoll, HTTP/1.1 with keep-alive and Content-Length. Answers 204 at once; to /500... 500; to /hang... never.
 * Each event in a body, alone or in a batch, is known by its "seq": the number after that word. FILE is mapped, and read by
 * others while this runs: 64-bit integers, the counters below, then, from the 65th on, when the event of each number
 * below EVENTS came first: microseconds since 1970, 0 while it has not.
 * Only what is answered with 204 is counted. Ends with its parent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { REQUESTS, EVENTS, FIRST_AT, LAST_AT, REPEATED, OTHERS, HEADER = 64 };

typedef struct Connection
{
	int			fd;
	size_t		used, size;
	char	   *data;
} Connection;

static int64_t *state;
static int64_t places;

static void
fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_REALTIME, &at);
	return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static void
count(const char *body, size_t length)
{
	static const char word[] = "\"seq\":";
	const char *end = body + length;
	int64_t		at = now(), events = 0;

	for (const char *p = body; (p = memmem(p, end - p, word, sizeof word - 1)) != NULL;)
	{
		int64_t		seq = 0;

		for (p += sizeof word - 1; p < end && *p == ' '; p++)
			;
		for (; p < end && *p >= '0' && *p <= '9'; p++)
			seq = seq * 10 + (*p - '0');
		events++;
		if (seq >= places)
			continue;
		if (state[HEADER + seq] == 0)
			state[HEADER + seq] = at;
		else
			state[REPEATED]++;
	}
	if (state[FIRST_AT] == 0)
		state[FIRST_AT] = at;
	state[LAST_AT] = at;
	state[EVENTS] += events > 0 ? events : 1;
	state[REQUESTS]++;
}

/* Answers what is complete; false: the connection is of no use any more. */
static int
serve(Connection *c)
{
	size_t		done = 0;
	char		answers[16384];
	size_t		answered = 0;

	for (;;)
	{
		static const char good[] = "HTTP/1.1 204 No Content\r\n\r\n";
		static const char bad[] = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
		char	   *head = c->data + done, *end = memmem(head, c->used - done, "\r\n\r\n", 4), *path;
		size_t		length = 0, whole;

		if (end == NULL)
			break;
		for (char *line = head; line < end; line = (char *) memchr(line, '\n', end + 2 - line) + 1)
			if (strncasecmp(line, "content-length:", 15) == 0)
				length = strtoul(line + 15, NULL, 10);
		whole = end + 4 - head + length;
		if (c->used - done < whole)
		{
			if (whole > c->size)
			{
				memmove(c->data, head, c->used -= done);
				done = 0;
				c->size = whole;
				if ((c->data = realloc(c->data, c->size)) == NULL)
					fail("realloc");
			}
			break;
		}
		path = memchr(head, ' ', end - head);
		if (path != NULL && strncmp(path, " /hang", 6) == 0)
			state[OTHERS]++;
		else if (path != NULL && strncmp(path, " /500", 5) == 0)
		{
			state[OTHERS]++;
			memcpy(answers + answered, bad, sizeof bad - 1);
			answered += sizeof bad - 1;
		}
		else
		{
			count(end + 4, length);
			memcpy(answers + answered, good, sizeof good - 1);
			answered += sizeof good - 1;
		}
		done += whole;
		if (answered > sizeof answers - sizeof bad)
			break;
	}
	memmove(c->data, c->data + done, c->used -= done);
	return answered == 0 || send(c->fd, answers, answered, MSG_NOSIGNAL) == (ssize_t) answered;
}

static void
shut(Connection *c)
{
	close(c->fd);
	free(c->data);
	free(c);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int			one = 1, file, poll, listener;
	size_t		bytes;

	if (argc < 4)
		return 2;
	address.sin_port = htons(atoi(argv[1]));
	places = atoll(argv[3]);
	bytes = (HEADER + places) * sizeof(int64_t);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if ((file = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0600)) < 0 || ftruncate(file, bytes) < 0)
		fail(argv[2]);
	if ((state = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)) == MAP_FAILED)
		fail("mmap");

	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *) &address, sizeof address) < 0 || listen(listener, 4096) < 0)
		fail("listen");
	poll = epoll_create1(0);
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &(struct epoll_event) {.events = EPOLLIN, .data.ptr = NULL});

	for (;;)
	{
		struct epoll_event events[256];
		int			n = epoll_wait(poll, events, 256, -1);

		for (int i = 0; i < n; i++)
		{
			Connection *c = events[i].data.ptr;
			ssize_t		got;

			if (c == NULL)
			{
				int			fd;

				while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
				{
					if ((c = calloc(1, sizeof *c)) == NULL || (c->data = malloc(c->size = 16384)) == NULL)
						fail("malloc");
					c->fd = fd;
					setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
					epoll_ctl(poll, EPOLL_CTL_ADD, fd, &(struct epoll_event) {.events = EPOLLIN, .data.ptr = c});
				}
				continue;
			}
			if (c->used == c->size && (c->data = realloc(c->data, c->size *= 2)) == NULL)
				fail("realloc");
			got = recv(c->fd, c->data + c->used, c->size - c->used, 0);
			if (got < 0 && (errno == EAGAIN || errno == EINTR))
				continue;
			if (got <= 0)
			{
				shut(c);
				continue;
			}
			c->used += got;
			if (!serve(c))
				shut(c);
		}
	}
}
