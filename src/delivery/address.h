/*
 * Which network addresses may be dialled.  Pure: no I/O, no PostgreSQL, no libcurl.
 */
#ifndef OUTBOX_ADDRESS_H
#define OUTBOX_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

typedef enum OutboxNetwork
{
	OUTBOX_NETWORK_PUBLIC,		/* https, globally reachable addresses, listed ports only */
	OUTBOX_NETWORK_PRIVATE		/* an operator's right: also http, and internal addresses */
} OutboxNetwork;

/*
 * May this socket address be dialled under this policy?  Under PUBLIC everything that is not globally reachable unicast is refused
 * (the IANA special-purpose registries), also when an IPv6 address embeds such an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo …).
 * PRIVATE refuses only what no webhook can live at (unspecified, multicast, broadcast, non-IP families).
 * On refusal *why, if not NULL, is a constant such as "loopback" or "private".
 */
extern bool outbox_address_allowed(const struct sockaddr *address, size_t size, OutboxNetwork network, const char **why);

#endif							/* OUTBOX_ADDRESS_H */
