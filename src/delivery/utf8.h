/*
 * Text of the database as UTF-8, which is what goes out.
 */
#ifndef OUTBOX_UTF8_H
#define OUTBOX_UTF8_H

/*
 * The text (of *size bytes) in UTF-8 and NUL-terminated, and its new size: itself if nothing is to be done, else in CurrentMemoryContext. In a transaction.  If it cannot be
 * converted, or nobody knows what it is (SQL_ASCII), it comes back as it is and *sure is set to false.  Never raises for what the text is.
 */
extern char *outbox_utf8(char *text, size_t *size, bool *sure);

#endif							/* OUTBOX_UTF8_H */
