/*
 * address: every special-purpose block, its edges, and every way an IPv6 address carries an IPv4 one.
 */
#include "delivery/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>

#include "tap.h"

typedef struct Case
{
	const char *text;
	const char *why;			/* NULL: may be dialled under public */
	bool		never;			/* refused under private too */
} Case;

static const Case cases[] = {
	/* public, and the neighbours of refused blocks */
	{"1.1.1.1", NULL, false},
	{"8.8.8.8", NULL, false},
	{"1.0.0.0", NULL, false},
	{"9.255.255.255", NULL, false},
	{"11.0.0.0", NULL, false},
	{"100.63.255.255", NULL, false},
	{"100.128.0.0", NULL, false},
	{"126.255.255.255", NULL, false},
	{"128.0.0.0", NULL, false},
	{"169.253.255.255", NULL, false},
	{"169.255.0.0", NULL, false},
	{"172.15.255.255", NULL, false},
	{"172.32.0.0", NULL, false},
	{"192.0.0.9", NULL, false},
	{"192.0.0.10", NULL, false},
	{"192.0.1.0", NULL, false},
	{"192.88.98.255", NULL, false},
	{"192.88.100.0", NULL, false},
	{"192.167.255.255", NULL, false},
	{"192.169.0.0", NULL, false},
	{"198.17.255.255", NULL, false},
	{"198.20.0.0", NULL, false},
	{"198.51.99.255", NULL, false},
	{"203.0.114.0", NULL, false},
	{"223.255.255.255", NULL, false},

	/* IPv4 special-purpose */
	{"0.0.0.0", "unspecified", true},
	{"0.0.0.1", "this network", false},
	{"0.255.255.255", "this network", false},
	{"10.0.0.0", "private", false},
	{"10.255.255.255", "private", false},
	{"100.64.0.0", "shared (CGNAT)", false},
	{"100.100.100.200", "shared (CGNAT)", false},	/* metadata */
	{"100.127.255.255", "shared (CGNAT)", false},
	{"127.0.0.1", "loopback", false},
	{"127.255.255.255", "loopback", false},
	{"169.254.169.254", "link-local", false},	/* metadata */
	{"169.254.170.2", "link-local", false}, /* metadata */
	{"172.16.0.0", "private", false},
	{"172.31.255.255", "private", false},
	{"192.0.0.0", "protocol assignment", false},
	{"192.0.0.170", "protocol assignment", false},
	{"192.0.0.192", "protocol assignment", false},	/* metadata */
	{"192.0.2.1", "documentation", false},
	{"192.88.99.1", "6to4 relay", false},
	{"192.168.0.1", "private", false},
	{"198.18.0.0", "benchmarking", false},
	{"198.19.255.255", "benchmarking", false},
	{"198.51.100.1", "documentation", false},
	{"203.0.113.1", "documentation", false},
	{"224.0.0.1", "multicast", true},
	{"239.255.255.255", "multicast", true},
	{"240.0.0.1", "reserved", false},
	{"255.255.255.254", "reserved", false},
	{"255.255.255.255", "broadcast", true},

	/* IPv6 global */
	{"2606:4700:4700::1111", NULL, false},
	{"2001:4860:4860::8888", NULL, false},
	{"2001:200::1", NULL, false},
	{"2001:1::1", NULL, false},
	{"2001:1::2", NULL, false},
	{"2001:1::3", NULL, false},
	{"2001:3::1", NULL, false},
	{"2001:4:112::1", NULL, false},
	{"2001:30::1", NULL, false},
	{"2003::1", NULL, false},
	{"3fff:1000::1", NULL, false},

	/* IPv6 special-purpose */
	{"::", "unspecified", true},
	{"::1", "loopback", false},
	{"100::1", "discard-only", false},
	{"100:0:0:1::1", "dummy prefix", false},
	{"2001:1::4", "protocol assignment", false},
	{"2001:2::1", "benchmarking", false},
	{"2001:5::1", "protocol assignment", false},
	{"2001:10::1", "ORCHID", false},
	{"2001:20::1", "ORCHIDv2", false},
	{"2001:1ff::1", "protocol assignment", false},
	{"2001:db8::1", "documentation", false},
	{"3ffe::1", "6bone", false},
	{"3fff::1", "documentation", false},
	{"3fff:fff::1", "documentation", false},
	{"5f00::1", "SRv6 segment", false},
	{"fc00::1", "unique local", false},
	{"fd00:ec2::254", "unique local", false},	/* metadata */
	{"fd20:ce::254", "unique local", false},	/* metadata */
	{"fe80::1", "link-local", false},
	{"febf::1", "link-local", false},
	{"fec0::1", "site-local", false},
	{"ff02::1", "multicast", true},
	{"ff0e::1", "multicast", true},
	{"4000::1", "not global unicast", false},
	{"1000::1", "not global unicast", false},
	{"e000::1", "not global unicast", false},
	{"200::1", "not global unicast", false},

	/* IPv4 inside IPv6 */
	{"::ffff:8.8.8.8", NULL, false},
	{"::ffff:127.0.0.1", "loopback", false},
	{"::ffff:169.254.169.254", "link-local", false},
	{"::ffff:0.0.0.0", "unspecified", true},
	{"::ffff:224.0.0.1", "multicast", true},
	{"::127.0.0.1", "loopback", false},
	{"::8.8.8.8", "IPv4-compatible", false},
	{"::2", "IPv4-compatible", false},
	{"::ffff:0:10.0.0.1", "private", false},
	{"::ffff:0:8.8.8.8", "IPv4-translated", false},
	{"64:ff9b::8.8.8.8", NULL, false},
	{"64:ff9b::10.0.0.1", "private", false},
	{"64:ff9b::169.254.169.254", "link-local", false},
	{"64:ff9b:0:0:0:1::1", "not global unicast", false},
	{"64:ff9b:1::8.8.8.8", "local-use NAT64", false},
	{"64:ff9b:1::10.0.0.1", "private", false},
	{"64:ff9b:1:ffff::1.1.1.1", "local-use NAT64", false},
	{"2002:7f00:1::1", "loopback", false},
	{"2002:a9fe:a9fe::1", "link-local", false},
	{"2002:808:808::1", "6to4", false},
	{"2001:0:7f00:1::1", "loopback", false},	/* Teredo server */
	{"2001:0:808:808::5601:5601", "link-local", false}, /* Teredo client 169.254.169.254 */
	{"2001:0:808:808:0:0:f7f7:f7f7", "Teredo", false},
	{"2606:4700::5efe:10.0.0.1", "private", false}, /* ISATAP */
	{"2606:4700::200:5efe:127.0.0.1", "loopback", false},
	{"2606:4700::200:5efe:8.8.8.8", NULL, false},
	{"fe80::5efe:8.8.8.8", "link-local", false},
};

static bool
judge(const char *text, OutboxNetwork network, const char **why)
{
	struct sockaddr_in ipv4 = {.sin_family = AF_INET};
	struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6};

	if (inet_pton(AF_INET, text, &ipv4.sin_addr) == 1)
		return outbox_address_allowed((struct sockaddr *) &ipv4, sizeof(ipv4), network, why);
	if (inet_pton(AF_INET6, text, &ipv6.sin6_addr) == 1)
		return outbox_address_allowed((struct sockaddr *) &ipv6, sizeof(ipv6), network, why);
	*why = "the test cannot parse it";
	return false;
}

static void
test_case(const Case *c)
{
	const char *why;
	bool		allowed = judge(c->text, OUTBOX_NETWORK_PUBLIC, &why);

	if (c->why == NULL)
		ok(allowed, "public dials %s%s%s", c->text, why ? ": " : "", why ? why : "");
	else
		ok(!allowed && why != NULL && strcmp(why, c->why) == 0, "public refuses %s: %s", c->text, why ? why : "(no reason)");

	allowed = judge(c->text, OUTBOX_NETWORK_PRIVATE, &why);
	ok(allowed == !c->never && (allowed || why != NULL), "private %s %s", c->never ? "refuses" : "dials", c->text);
}

static void
test_odd_sockaddrs(void)
{
	struct sockaddr_un local = {.sun_family = AF_UNIX};
	struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x08080808)};
	const char *why;

	ok(!outbox_address_allowed((struct sockaddr *) &local, sizeof(local), OUTBOX_NETWORK_PRIVATE, &why) &&
	   strcmp(why, "not an IP address") == 0, "a Unix socket is refused under private too");
	ok(!outbox_address_allowed((struct sockaddr *) &ipv4, sizeof(ipv4) - 1, OUTBOX_NETWORK_PUBLIC, NULL), "a cut-off address is refused");
	ok(outbox_address_allowed((struct sockaddr *) &ipv4, sizeof(ipv4), OUTBOX_NETWORK_PUBLIC, NULL), "why may be NULL");
}

int
main(void)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		test_case(&cases[i]);
	test_odd_sockaddrs();
	return done_testing();
}
