/*
 * The slots of a pool.
 *
 * One half is anybody's, by turns.  It is what endpoints that hang can fill, and nothing is lost by that but half of the slots.  The other half is for those who answer, and divided
 * evenly among the members that are at work: so even all those that will hang in a moment cannot take the share of the others.  Who has not answered anything yet has a claim too, or it could never
 * begin, but only on one half of that half.  A member alone has all of it, so slots are idle only while others are owed them.
 */
#include "slots.h"

/* The larger half: a pool of one slot has no reserve. */
static int
common_half(int limit)
{
	return limit - limit / 2;
}

bool
outbox_pool_has_slot(const OutboxPool *pool, int limit)
{
	return pool->common + pool->reserved < limit;
}

bool
outbox_pool_has_common(const OutboxPool *pool, int limit)
{
	return pool->common < common_half(limit) && outbox_pool_has_slot(pool, limit);
}

int
outbox_pool_share(const OutboxPool *pool, int limit)
{
	int			reserve = limit - common_half(limit);

	if (pool->members <= 1)
		return reserve;
	return reserve >= pool->members ? reserve / pool->members : reserve > 0;
}

OutboxSlot
outbox_pool_offer(const OutboxPool *pool, int limit, int held, OutboxTrust trust)
{
	int			reserve = limit - common_half(limit);

	if (outbox_pool_has_common(pool, limit))
		return OUTBOX_SLOT_COMMON;
	if (trust == OUTBOX_SILENT || held >= outbox_pool_share(pool, limit) || !outbox_pool_has_slot(pool, limit))
		return OUTBOX_SLOT_NONE;
	if (trust == OUTBOX_UNKNOWN && pool->reserved >= reserve - reserve / 2)
		return OUTBOX_SLOT_NONE;
	return OUTBOX_SLOT_RESERVED;
}
