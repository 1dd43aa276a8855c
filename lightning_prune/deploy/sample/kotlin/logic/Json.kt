package org.lightningprune.logic

/** What is wrong with a file, an input or an output, in words that can be shown. */
class ModelException(message: String) : Exception(message)

/**
 * A strict reader of JSON (RFC 8259): objects become maps, arrays lists, whole numbers Long, other numbers Double.
 *
 * Refused besides syntax errors: a key that appears twice, more than [MAX_DEPTH] levels, numbers that do not fit.
 */
class Json private constructor(private val text: String) {
    private var at = 0

    private fun wrong(what: String): ModelException = ModelException("no valid JSON: $what at character $at")

    private fun space() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun take(expected: Char) {
        if (at >= text.length || text[at] != expected) throw wrong("'$expected' expected")
        at++
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) throw wrong("a value expected")
        at += word.length
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > MAX_DEPTH) throw wrong("more than $MAX_DEPTH levels")
        space()
        return when (if (at < text.length) text[at] else ' ') {
            '{' -> objectValue(depth)
            '[' -> arrayValue(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun objectValue(depth: Int): Map<String, Any?> {
        val values = LinkedHashMap<String, Any?>()
        separated('{', '}') {
            space()
            val key = string()
            if (values.containsKey(key)) throw wrong("the key \"$key\" again")
            space()
            take(':')
            values[key] = value(depth + 1)
        }
        return values
    }

    private fun arrayValue(depth: Int): List<Any?> {
        val values = ArrayList<Any?>()
        separated('[', ']') { values.add(value(depth + 1)) }
        return values
    }

    private fun separated(open: Char, close: Char, entry: () -> Unit) {
        take(open)
        space()
        if (at < text.length && text[at] == close) {
            at++
            return
        }
        while (true) {
            entry()
            space()
            if (at < text.length && text[at] == ',') at++ else break
        }
        take(close)
    }

    private fun string(): String {
        take('"')
        val out = StringBuilder()
        while (true) {
            if (at >= text.length) throw wrong("a string without end")
            val char = text[at++]
            when {
                char == '"' -> return out.toString()
                char == '\\' -> out.append(escaped())
                char < ' ' -> throw wrong("a control character in a string")
                else -> out.append(char)
            }
        }
    }

    private fun escaped(): Char {
        val char = if (at < text.length) text[at++] else ' '
        val known = "\"\\/bfnrt".indexOf(char)
        if (known >= 0) return "\"\\/\b\u000c\n\r\t"[known]
        val code = if (char == 'u' && at + 4 <= text.length) text.substring(at, at + 4) else ""
        if (!HEX.matches(code)) throw wrong("an unknown escape")
        at += 4
        return code.toInt(16).toChar()
    }

    private fun number(): Any {
        val found = NUMBER.find(text, at)
        if (found == null || found.range.first != at) throw wrong("a value expected")
        at += found.value.length
        if (found.value.all { it == '-' || it in '0'..'9' }) {
            return found.value.toLongOrNull() ?: throw wrong("${found.value} is too large")
        }
        val value = found.value.toDouble()
        if (value.isInfinite()) throw wrong("${found.value} is too large")
        return value
    }

    companion object {
        const val MAX_DEPTH = 64
        private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?")
        private val HEX = Regex("[0-9a-fA-F]{4}")

        /** The text of maps, lists, texts and whole numbers. */
        fun text(value: Any?): String = when (value) {
            is Map<*, *> -> value.entries.joinToString(",", "{", "}") { "${text(it.key)}:${text(it.value)}" }
            is List<*> -> value.joinToString(",", "[", "]") { text(it) }
            is Long -> value.toString()
            else -> (value as String).asIterable().joinToString("", "\"", "\"") {
                if (it < ' ' || it == '"' || it == '\\') "\\u" + (it.code + 0x10000).toString(16).substring(1) else "$it"
            }
        }

        /** The value of a whole text. Throws [ModelException] where it is no JSON. */
        fun parse(text: String): Any? {
            val reader = Json(text)
            val value = reader.value(0)
            reader.space()
            if (reader.at != text.length) throw reader.wrong("more after the value")
            return value
        }
    }
}
