/*
 * The limit: how many small POSTs a second one core can push through libcurl.
 *
 *   bare URL CONCURRENCY REQUESTS BODY_BYTES [CA_FILE]
 *
 * A bare multi_socket loop over epoll with keep-alive connections and reused easy handles; nothing is read from a table, signed or recorded.
 * Prints requests per second and CPU microseconds per request. Fails unless each was answered with 2xx.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

static int	epoll_fd;
static long timeout = -1;

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy, (void) arg, (void) socket_arg;
	if (what == CURL_POLL_REMOVE)
		return epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL), 0;
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0)
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
	return 0;
}

static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
	(void) multi, (void) arg;
	timeout = timeout_ms;
	return 0;
}

static size_t
discard(char *data, size_t size, size_t n, void *arg)
{
	(void) data, (void) arg;
	return size * n;
}

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int
main(int argc, char **argv)
{
	int			concurrency, total, bytes, started = 0, done = 0, delivered = 0, running;
	char	   *body;
	CURLM	   *multi;
	struct curl_slist *headers = NULL;
	struct rusage used;
	double		began, elapsed;

	if (argc < 5)
		return 2;
	concurrency = atoi(argv[2]);
	total = atoi(argv[3]);
	bytes = atoi(argv[4]);
	body = memset(malloc(bytes), 'x', bytes);

	curl_global_init(CURL_GLOBAL_ALL);
	multi = curl_multi_init();
	epoll_fd = epoll_create1(0);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) concurrency);

	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	headers = curl_slist_append(headers, "webhook-id: 0190b6a0-0000-7000-8000-000000000000");
	headers = curl_slist_append(headers, "webhook-timestamp: 1700000000");
	headers = curl_slist_append(headers, "webhook-signature: v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");

	began = seconds();
	for (; started < concurrency; started++)
	{
		CURL	   *easy = curl_easy_init();

		curl_easy_setopt(easy, CURLOPT_URL, argv[1]);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, (long) bytes);
		curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
		curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
		curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
		curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
		curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 10000L);
		if (argc > 5)
			curl_easy_setopt(easy, CURLOPT_CAINFO, argv[5]);
		curl_multi_add_handle(multi, easy);
	}

	while (done < total)
	{
		struct epoll_event events[256];
		CURLMsg    *message;
		int			left, again = 0;
		int			n = epoll_wait(epoll_fd, events, 256, timeout < 0 ? 1000 : (int) timeout);

		for (int i = 0; i < n; i++)
			curl_multi_socket_action(multi, events[i].data.fd,
									 (events[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
									 (events[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
									 (events[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0), &running);
		if (n == 0 || timeout == 0)
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);

		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL	   *easy = message->easy_handle;
			long		status = 0;

			if (message->msg != CURLMSG_DONE)
				continue;
			curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
			delivered += status / 100 == 2;
			done++;
			curl_multi_remove_handle(multi, easy);
			if (started < total)
			{
				curl_multi_add_handle(multi, easy);
				started++;
				again = 1;
			}
		}
		if (again)
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	elapsed = seconds() - began;
	getrusage(RUSAGE_SELF, &used);
	printf("%.0f %.2f\n", total / elapsed,
		   (used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6) * 1e6 / total);
	return delivered == total ? 0 : 1;
}
