/*
 * Which network addresses may be dialled.
 *
 * Whoever may create a subscription chooses a URL, and the database server dials it from inside the network: server-side request forgery by
 * design, unless the address is judged.  Names and spellings ("localhost", "0x7f.1", a name that changes its answer) are no use as a filter, so the
 * judge sees what the resolver made of them: the address that is about to be dialled.
 *
 * Two tables, one row per block of the IANA special-purpose registries (iana-ipv4-special-registry, iana-ipv6-special-registry), the more specific
 * block first, and one table of the ways in which an IPv6 address carries an IPv4 one.  An embedded address is judged like the address itself; a
 * translation mechanism is refused even around a public address where the block is not globally reachable or its gateway is
 * not ours to trust.  IPv6 outside 2000::/3, the only global unicast space handed out so far, is refused without naming reasons.
 */
#include "address.h"

#include <netinet/in.h>
#include <stdint.h>
#include <string.h>

/* What to do with a block. */
typedef enum Treatment
{
	GLOBAL,						/* an exception within a refused block: globally reachable unicast */
	INTERNAL,					/* refused under PUBLIC */
	NEVER						/* no webhook can live there: refused under PRIVATE too */
} Treatment;

typedef struct Block
{
	unsigned char prefix[16];	/* 4 bytes count in the IPv4 table */
	int			bits;
	Treatment	treatment;
	const char *why;			/* what the operator is told */
} Block;

static const Block ipv4_blocks[] = {
	{{0}, 32, NEVER, "unspecified"},	/* 0.0.0.0: RFC 1122 §3.2.1.3; Linux dials itself */
	{{0}, 8, INTERNAL, "this network"}, /* 0.0.0.0/8: RFC 791 §3.2 */
	{{10}, 8, INTERNAL, "private"}, /* RFC 1918 */
	{{100, 64}, 10, INTERNAL, "shared (CGNAT)"},	/* RFC 6598; 100.100.100.200 is a metadata service */
	{{127}, 8, INTERNAL, "loopback"},	/* RFC 1122 §3.2.1.3 */
	{{169, 254}, 16, INTERNAL, "link-local"},	/* RFC 3927; 169.254.169.254 is a metadata service */
	{{172, 16}, 12, INTERNAL, "private"},	/* RFC 1918 */
	{{192, 0, 0, 9}, 32, GLOBAL, NULL}, /* Port Control Protocol anycast: RFC 7723 */
	{{192, 0, 0, 10}, 32, GLOBAL, NULL},	/* TURN anycast: RFC 8155 */
	{{192, 0, 0}, 24, INTERNAL, "protocol assignment"}, /* RFC 6890; DS-Lite, NAT64 discovery, dummy address */
	{{192, 0, 2}, 24, INTERNAL, "documentation"},	/* TEST-NET-1: RFC 5737 */
	{{192, 88, 99}, 24, INTERNAL, "6to4 relay"},	/* deprecated anycast: RFC 7526 */
	{{192, 168}, 16, INTERNAL, "private"},	/* RFC 1918 */
	{{198, 18}, 15, INTERNAL, "benchmarking"},	/* RFC 2544 */
	{{198, 51, 100}, 24, INTERNAL, "documentation"},	/* TEST-NET-2: RFC 5737 */
	{{203, 0, 113}, 24, INTERNAL, "documentation"}, /* TEST-NET-3: RFC 5737 */
	{{224}, 4, NEVER, "multicast"}, /* RFC 5771 */
	{{255, 255, 255, 255}, 32, NEVER, "broadcast"}, /* RFC 919 */
	{{240}, 4, INTERNAL, "reserved"},	/* RFC 1112 §4 */
};

static const Block ipv6_blocks[] = {
	{{0}, 128, NEVER, "unspecified"},	/* ::/128: RFC 4291 §2.5.2 */
	{{[15] = 1}, 128, INTERNAL, "loopback"},	/* ::1/128: RFC 4291 §2.5.3 */
	{{[10] = 0xff, 0xff}, 96, GLOBAL, NULL},	/* ::ffff:0:0/96, IPv4-mapped: what it embeds decides */
	{{0}, 96, INTERNAL, "IPv4-compatible"}, /* ::/96: RFC 4291 §2.5.5.1, deprecated */
	{{[8] = 0xff, 0xff}, 96, INTERNAL, "IPv4-translated"},	/* ::ffff:0:0:0/96: RFC 2765 §2.1 */
	{{0x00, 0x64, 0xff, 0x9b}, 96, GLOBAL, NULL},	/* 64:ff9b::/96, NAT64: RFC 6052; what it embeds decides */
	{{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}, 48, INTERNAL, "local-use NAT64"},	/* RFC 8215: where it leads is a local matter */
	{{0x01}, 64, INTERNAL, "discard-only"}, /* 100::/64: RFC 6666 */
	{{0x01, [7] = 0x01}, 64, INTERNAL, "dummy prefix"}, /* 100:0:0:1::/64: RFC 9780 */
	{{0x20, 0x01}, 32, INTERNAL, "Teredo"}, /* 2001::/32: RFC 4380 */
	{{0x20, 0x01, 0x00, 0x01, [15] = 1}, 128, GLOBAL, NULL},	/* Port Control Protocol anycast: RFC 7723 */
	{{0x20, 0x01, 0x00, 0x01, [15] = 2}, 128, GLOBAL, NULL},	/* TURN anycast: RFC 8155 */
	{{0x20, 0x01, 0x00, 0x01, [15] = 3}, 128, GLOBAL, NULL},	/* service registration anycast: RFC 9665 */
	{{0x20, 0x01, 0x00, 0x03}, 32, GLOBAL, NULL},	/* AMT: RFC 7450 */
	{{0x20, 0x01, 0x00, 0x04, 0x01, 0x12}, 48, GLOBAL, NULL},	/* AS112-v6: RFC 7535 */
	{{0x20, 0x01, 0x00, 0x02}, 48, INTERNAL, "benchmarking"},	/* RFC 5180 */
	{{0x20, 0x01, 0x00, 0x10}, 28, INTERNAL, "ORCHID"}, /* 2001:10::/28: RFC 4843, deprecated */
	{{0x20, 0x01, 0x00, 0x20}, 28, INTERNAL, "ORCHIDv2"},	/* identifiers, nothing is routed there: RFC 7343 */
	{{0x20, 0x01, 0x00, 0x30}, 28, GLOBAL, NULL},	/* 2001:30::/28, drone remote id: RFC 9374 */
	{{0x20, 0x01}, 23, INTERNAL, "protocol assignment"},	/* 2001::/23: RFC 2928 */
	{{0x20, 0x01, 0x0d, 0xb8}, 32, INTERNAL, "documentation"},	/* RFC 3849 */
	{{0x20, 0x02}, 16, INTERNAL, "6to4"},	/* RFC 3056; relays deprecated by RFC 7526 */
	{{0x3f, 0xfe}, 16, INTERNAL, "6bone"},	/* RFC 3701: returned, not reassigned */
	{{0x3f, 0xff}, 20, INTERNAL, "documentation"},	/* 3fff::/20: RFC 9637 */
	{{0x5f}, 16, INTERNAL, "SRv6 segment"}, /* 5f00::/16: RFC 9602 */
	{{0xfc}, 7, INTERNAL, "unique local"},	/* RFC 4193; fd00:ec2::254 is a metadata service */
	{{0xfe, 0x80}, 10, INTERNAL, "link-local"}, /* RFC 4291 §2.5.6 */
	{{0xfe, 0xc0}, 10, INTERNAL, "site-local"}, /* RFC 3879, deprecated but still routed in places */
	{{0xff}, 8, NEVER, "multicast"},	/* RFC 4291 §2.7 */
	{{0x20}, 3, GLOBAL, NULL},	/* 2000::/3: RFC 4291 §2.4, iana-ipv6-unicast-address-assignments */
	{{0}, 0, INTERNAL, "not global unicast"},	/* the rest is reserved by IETF */
};

/* An IPv4 address inside an IPv6 one. */
typedef struct Embedding
{
	unsigned char prefix[16];
	unsigned char mask[16];
	int			at;				/* first of its four bytes */
	unsigned char flip;			/* stored XORed with this */
} Embedding;

#define ONES_2 0xff, 0xff
#define ONES_4 ONES_2, ONES_2
#define ONES_8 ONES_4, ONES_4
#define ONES_12 ONES_8, ONES_4

static const Embedding embeddings[] = {
	{{[10] = 0xff, 0xff}, {ONES_12}, 12, 0},	/* IPv4-mapped: RFC 4291 §2.5.5.2 */
	{{0}, {ONES_12}, 12, 0},	/* IPv4-compatible: RFC 4291 §2.5.5.1 */
	{{[8] = 0xff, 0xff}, {ONES_12}, 12, 0}, /* IPv4-translated: RFC 2765 §2.1 */
	{{0x00, 0x64, 0xff, 0x9b}, {ONES_12}, 12, 0},	/* NAT64: RFC 6052 §2.2 */
	{{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}, {ONES_4, ONES_2}, 12, 0},	/* local-use NAT64, /96 form: RFC 8215 */
	{{0x20, 0x02}, {ONES_2}, 2, 0}, /* 6to4: RFC 3056 §2 */
	{{0x20, 0x01}, {ONES_4}, 4, 0}, /* Teredo server: RFC 4380 §4 */
	{{0x20, 0x01}, {ONES_4}, 12, 0xff}, /* Teredo client, stored inverted: RFC 4380 §4 */

	/* ISATAP: an interface identifier under any prefix; 02 in front says a global address: RFC 5214 §6.1 */
	{{[10] = 0x5e, 0xfe}, {[8] = 0xfd, 0xff, 0xff, 0xff}, 12, 0},
};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static bool
in_block(const unsigned char *address, const Block *block)
{
	int			whole = block->bits / 8;
	int			rest = block->bits % 8;

	if (memcmp(address, block->prefix, whole) != 0)
		return false;
	return rest == 0 || ((address[whole] ^ block->prefix[whole]) >> (8 - rest)) == 0;
}

/* The first row that matches decides; no row: global. */
static bool
judge(const unsigned char *address, const Block *blocks, size_t n, OutboxNetwork network, const char **why)
{
	for (size_t i = 0; i < n; i++)
	{
		if (!in_block(address, &blocks[i]))
			continue;
		if (blocks[i].treatment == GLOBAL || (blocks[i].treatment == INTERNAL && network == OUTBOX_NETWORK_PRIVATE))
			return true;
		*why = blocks[i].why;
		return false;
	}
	return true;
}

static bool
judge_ipv4(const unsigned char *address, OutboxNetwork network, const char **why)
{
	return judge(address, ipv4_blocks, LENGTH(ipv4_blocks), network, why);
}

static bool
embeds(const unsigned char *address, const Embedding *embedding)
{
	for (int i = 0; i < 16; i++)
		if ((address[i] & embedding->mask[i]) != embedding->prefix[i])
			return false;
	return true;
}

/* What is embedded is judged first: "loopback" says more than "IPv4-compatible". */
static bool
judge_ipv6(const unsigned char *address, OutboxNetwork network, const char **why)
{
	static const unsigned char loopback[16] = {[15] = 1};

	for (size_t i = 0; i < LENGTH(embeddings); i++)
	{
		unsigned char inner[4];

		/* ::1 and :: lie in the IPv4-compatible block, and are not of it */
		if (!embeds(address, &embeddings[i]) || memcmp(address, loopback, 15) == 0)
			continue;
		for (int j = 0; j < 4; j++)
			inner[j] = address[embeddings[i].at + j] ^ embeddings[i].flip;
		if (!judge_ipv4(inner, network, why))
			return false;
	}
	return judge(address, ipv6_blocks, LENGTH(ipv6_blocks), network, why);
}

bool
outbox_address_allowed(const struct sockaddr *address, size_t size, OutboxNetwork network, const char **why)
{
	const char *ignored;

	if (why == NULL)
		why = &ignored;
	*why = NULL;

	if (size >= sizeof(struct sockaddr_in) && address->sa_family == AF_INET)
	{
		struct sockaddr_in ipv4;

		memcpy(&ipv4, address, sizeof(ipv4));
		return judge_ipv4((const unsigned char *) &ipv4.sin_addr, network, why);
	}
	if (size >= sizeof(struct sockaddr_in6) && address->sa_family == AF_INET6)
	{
		struct sockaddr_in6 ipv6;

		memcpy(&ipv6, address, sizeof(ipv6));
		return judge_ipv6(ipv6.sin6_addr.s6_addr, network, why);
	}
	*why = "not an IP address";
	return false;
}
