/*
 * The vault: records of outbox.secret, encrypted if there is a key.
 */
#ifndef OUTBOX_VAULT_H
#define OUTBOX_VAULT_H

#include "keyring.h"

/*
 * What a record holds: the bytes stored under this key (NULL: plain) for a subscription, as a secret of this kind.  Palloc'd, with one NUL behind; to be wiped
 * (outbox_vault_wipe) and freed.  NULL: it cannot be read, because the key is not there, or because it is not what was stored for this subscription and kind.
 */
extern PGDLLEXPORT unsigned char *outbox_vault_read(const OutboxKeyring *keyring, const char *kind, int32 subscription, const char *key_id,
													const bytea *stored, Size *size);
extern PGDLLEXPORT void outbox_vault_wipe(void *memory, Size size);

/*
 * Encrypts records that are plain, or under another key than the first, at most so many.  Returns how many.  In a transaction with SPI connected, as somebody who may write
 * outbox.secret; leaves alone what is locked or cannot be read.
 */
extern uint64 outbox_vault_renew(int at_most);

#endif							/* OUTBOX_VAULT_H */
