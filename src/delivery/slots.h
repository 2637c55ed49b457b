/*
 * How a number of requests that may be in flight is shared, so that those who never get an answer cannot take it all.
 *
 * Pure arithmetic, tested by table.
 */
#ifndef OUTBOX_SLOTS_H
#define OUTBOX_SLOTS_H

#include <stdbool.h>

/* What is known of who asks. */
typedef enum OutboxTrust
{
	OUTBOX_SILENT,				/* its last request failed, or it owes an answer for too long, or its first one */
	OUTBOX_UNKNOWN,				/* it has not been asked anything yet */
	OUTBOX_ANSWERS
} OutboxTrust;

/* The slots of a server among its tenants, or of a tenant among its subscriptions. */
typedef struct OutboxPool
{
	int			common;			/* slots in use: of the half that is anybody's … */
	int			reserved;		/* … and of the half that is divided */
	int			members;		/* who have something in flight, or to send */
} OutboxPool;

typedef enum OutboxSlot
{
	OUTBOX_SLOT_NONE,
	OUTBOX_SLOT_COMMON,
	OUTBOX_SLOT_RESERVED
} OutboxSlot;

/* Is any slot free; is one of the common half; how many of the other half are a member's. limit: slots of both halves, at least 1. */
extern bool outbox_pool_has_slot(const OutboxPool *pool, int limit);
extern bool outbox_pool_has_common(const OutboxPool *pool, int limit);
extern int	outbox_pool_share(const OutboxPool *pool, int limit);

/* Which slot a request of a member would get, who holds so many reserved ones. */
extern OutboxSlot outbox_pool_offer(const OutboxPool *pool, int limit, int held, OutboxTrust trust);

#endif							/* OUTBOX_SLOTS_H */
