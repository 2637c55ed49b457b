/*
 * slots: who gets one, and that those who never give one back cannot take what is others'.
 */
#include "delivery/slots.h"

#include <string.h>

#include "tap.h"

static void
test_offers(void)
{
	static const struct
	{
		const char *what;
		int			limit;
		OutboxPool	pool;
		int			held;
		OutboxTrust trust;
		OutboxSlot	slot;
	}			cases[] = {
		{"an empty pool", 10, {0, 0, 1}, 0, OUTBOX_SILENT, OUTBOX_SLOT_COMMON},
		{"the last common one", 10, {4, 0, 9}, 0, OUTBOX_SILENT, OUTBOX_SLOT_COMMON},
		{"no common one, and not trusted", 10, {5, 0, 1}, 0, OUTBOX_SILENT, OUTBOX_SLOT_NONE},
		{"no common one, alone", 10, {5, 0, 1}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_RESERVED},
		{"alone, the last of all", 10, {5, 4, 1}, 4, OUTBOX_ANSWERS, OUTBOX_SLOT_RESERVED},
		{"alone, none is left", 10, {5, 5, 1}, 5, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"one of two, within its share", 10, {5, 1, 2}, 1, OUTBOX_ANSWERS, OUTBOX_SLOT_RESERVED},
		{"one of two, beyond it", 10, {5, 2, 2}, 2, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"more members than slots: one each", 10, {5, 3, 100}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_RESERVED},
		{"and not two", 10, {5, 3, 100}, 1, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"while there are any", 10, {5, 5, 100}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"an odd limit: the common half is the larger", 5, {2, 0, 2}, 0, OUTBOX_SILENT, OUTBOX_SLOT_COMMON},
		{"and the other the smaller", 5, {3, 2, 2}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"a pool of one", 1, {0, 0, 1000}, 0, OUTBOX_SILENT, OUTBOX_SLOT_COMMON},
		{"in use", 1, {1, 0, 1}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"the limit was lowered", 4, {8, 2, 1}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"and the common ones are back", 4, {1, 3, 1}, 0, OUTBOX_ANSWERS, OUTBOX_SLOT_NONE},
		{"nothing known of it, and a common one", 20, {9, 0, 1}, 0, OUTBOX_UNKNOWN, OUTBOX_SLOT_COMMON},
		{"nothing known of it: the first half of the reserve", 20, {10, 4, 100}, 0, OUTBOX_UNKNOWN, OUTBOX_SLOT_RESERVED},
		{"and no more", 20, {10, 5, 100}, 0, OUTBOX_UNKNOWN, OUTBOX_SLOT_NONE},
		{"within its share", 20, {10, 4, 100}, 1, OUTBOX_UNKNOWN, OUTBOX_SLOT_NONE},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		ok(outbox_pool_offer(&cases[i].pool, cases[i].limit, cases[i].held, cases[i].trust) == cases[i].slot, "%s", cases[i].what);
}

/* All of n members want all they can get; the first `hang` of them never give one back. How many slots are left to the others? */
static int
left_to_others(int limit, int n, int hang, OutboxTrust trust)
{
	OutboxPool	pool = {.members = n};
	int			held[2000];

	memset(held, 0, sizeof(held));
	for (int turn = 0; turn < limit; turn++)
	{
		for (int i = 0; i < hang; i++)
		{
			switch (outbox_pool_offer(&pool, limit, held[i], trust))
			{
				case OUTBOX_SLOT_COMMON:
					pool.common++;
					break;
				case OUTBOX_SLOT_RESERVED:
					pool.reserved++;
					held[i]++;
					break;
				case OUTBOX_SLOT_NONE:
					break;
			}
		}
	}
	return limit - pool.common - pool.reserved;
}

static void
test_isolation(void)
{
	ok(left_to_others(512, 1000, 100, OUTBOX_SILENT) == 256, "100 of 1000 are known to hang: half is left to the others");
	ok(left_to_others(512, 1000, 100, OUTBOX_ANSWERS) == 156, "they answered until now: what is not theirs is left");
	ok(left_to_others(512, 1000, 900, OUTBOX_UNKNOWN) == 128, "900 of 1000 of whom nothing is known: a quarter is left to who answers");
	ok(left_to_others(512, 120, 100, OUTBOX_ANSWERS) == 56, "100 of 120: something is left even so");
	ok(left_to_others(512, 120, 100, OUTBOX_SILENT) == 256, "known: half");
	ok(left_to_others(512, 2, 1, OUTBOX_ANSWERS) == 128, "one of two");
	ok(left_to_others(512, 1, 1, OUTBOX_ANSWERS) == 0, "one alone that answers has all");
	ok(left_to_others(512, 1, 1, OUTBOX_UNKNOWN) == 128, "before it has, three quarters");
	ok(left_to_others(50, 10, 5, OUTBOX_ANSWERS) == 15, "five subscriptions of ten of a tenant");
}

int
main(void)
{
	test_offers();
	test_isolation();
	return done_testing();
}
