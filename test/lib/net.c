/*
 * The net as a test wants it: loaded into the test's server ahead of libc and libcurl (LD_PRELOAD, see Outbox::Net).
 *
 *	OUTBOX_NET_DNS		port on 127.0.0.1 of the test's name server: libc's own resolver asks it and no other
 *	OUTBOX_NET_ROUTES	file of lines "ADDRESS PORT TO": a connection to ADDRESS and PORT arrives at port TO of 127.0.0.1 instead
 *	OUTBOX_NET_CONNECTS	file to which every connect() to an IP address is appended as "ADDRESS PORT", before anything else happens
 *
 * Who asks for the peer is told the address that was dialled.  What is neither routed nor loopback is unreachable: no packet of a test leaves the machine.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int (*GetPeerName) (int, struct sockaddr *, socklen_t *);
typedef int (*Connect) (int, const struct sockaddr *, socklen_t);
typedef int (*GetAddrInfo) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

static struct sockaddr_in led[65536];	/* by descriptor: what was dialled, if it was led elsewhere */

/* The resolver's state belongs to the thread, and libcurl starts a thread for each name. */
int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
	GetAddrInfo real = (GetAddrInfo) dlsym(RTLD_NEXT, "getaddrinfo");
	const char *port = getenv("OUTBOX_NET_DNS");

	if (port != NULL && res_init() == 0)
	{
		_res.nscount = 1;
		_res.nsaddr_list[0] = (struct sockaddr_in) {
			.sin_family = AF_INET, .sin_port = htons((uint16_t) atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
		};
		_res.dnsrch[0] = NULL;	/* names are what they are */
		_res.retrans = 30;		/* a server that is silent is so for minutes */
		_res.retry = 5;
	}
	return real(name, service, hints, result);
}

static void
note(const char *address, int port)
{
	const char *path = getenv("OUTBOX_NET_CONNECTS");
	char		line[INET6_ADDRSTRLEN + 16];
	int			size = snprintf(line, sizeof(line), "%s %d\n", address, port);
	int			fd = path == NULL ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (path != NULL && (fd < 0 || write(fd, line, (size_t) size) != size))
		abort();				/* a test that does not see everything proves nothing */
	if (fd >= 0)
		close(fd);
}

/* 0: nowhere. */
static int
routed(const char *address, int port)
{
	const char *path = getenv("OUTBOX_NET_ROUTES");
	FILE	   *file = path == NULL ? NULL : fopen(path, "re");
	char		from[INET6_ADDRSTRLEN];
	int			at,
				to,
				found = 0;

	while (file != NULL && found == 0 && fscanf(file, "%45s %d %d", from, &at, &to) == 3)
		if (strcmp(from, address) == 0 && at == port)
			found = to;
	if (file != NULL)
		fclose(file);
	return found;
}

int
connect(int fd, const struct sockaddr *address, socklen_t size)
{
	Connect		real = (Connect) dlsym(RTLD_NEXT, "connect");
	char		text[INET6_ADDRSTRLEN];
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
	int			to;

	if (fd < 0 || fd >= 65536)
		abort();
	led[fd].sin_family = 0;
	if (address->sa_family == AF_INET && size >= sizeof(ipv4))
	{
		memcpy(&ipv4, address, sizeof(ipv4));
		inet_ntop(AF_INET, &ipv4.sin_addr, text, sizeof(text));
		note(text, ntohs(ipv4.sin_port));
		to = routed(text, ntohs(ipv4.sin_port));
		if (to == 0 && ntohl(ipv4.sin_addr.s_addr) >> 24 == 127)
			return real(fd, address, size);
	}
	else if (address->sa_family == AF_INET6 && size >= sizeof(ipv6))
	{
		memcpy(&ipv6, address, sizeof(ipv6));
		inet_ntop(AF_INET6, &ipv6.sin6_addr, text, sizeof(text));
		note(text, ntohs(ipv6.sin6_port));
		to = 0;
		if (IN6_IS_ADDR_LOOPBACK(&ipv6.sin6_addr))
			return real(fd, address, size);
	}
	else
		return real(fd, address, size);
	if (to == 0)
	{
		errno = ENETUNREACH;
		return -1;
	}
	led[fd] = ipv4;
	ipv4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ipv4.sin_port = htons((uint16_t) to);
	return real(fd, (struct sockaddr *) &ipv4, sizeof(ipv4));
}

int
getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
	GetPeerName real = (GetPeerName) dlsym(RTLD_NEXT, "getpeername");

	if (fd < 0 || fd >= 65536 || led[fd].sin_family == 0)
		return real(fd, address, size);
	memcpy(address, &led[fd], *size < sizeof(led[fd]) ? *size : sizeof(led[fd]));
	*size = sizeof(led[fd]);
	return 0;
}
