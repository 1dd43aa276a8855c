package org.lightningprune.logic

/** Typed access to a JSON object; [where] names it in the messages. */
internal class Fields(value: Any?, private val where: String) {
    private val values: Map<*, *> = value as? Map<*, *> ?: throw ModelException("$where is no JSON object")

    private fun wrong(key: String): ModelException =
        ModelException("$where is incomplete: \"$key\" is ${values[key] ?: "missing"}")

    fun has(key: String): Boolean = values[key] != null

    fun text(key: String): String = values[key] as? String ?: throw wrong(key)

    fun textOr(key: String, otherwise: String): String = if (has(key)) text(key) else otherwise

    fun whole(key: String): Long = values[key] as? Long ?: throw wrong(key)

    fun size(key: String): Long = whole(key).also { if (it < 0) throw wrong(key) }

    fun within(key: String, range: IntRange): Int = whole(key).also { if (it !in range) throw wrong(key) }.toInt()

    fun number(key: String): Double = (values[key] as? Number ?: throw wrong(key)).toDouble()

    fun numbers(key: String): List<Double> {
        val entries = if (has(key)) values[key] as? List<*> ?: throw wrong(key) else emptyList<Any?>()
        return entries.map { (it as? Number ?: throw wrong(key)).toDouble() }
    }

    fun inner(key: String): Fields = Fields(values[key] ?: throw wrong(key), "\"$key\" in $where")

    fun list(key: String): List<Fields> =
        (values[key] as? List<*> ?: throw wrong(key)).map { Fields(it, "an entry of \"$key\" in $where") }

    /** How many entries a list has. */
    fun count(key: String): Int = (values[key] as? List<*> ?: throw wrong(key)).size

    fun texts(key: String): List<String> {
        val entries = if (has(key)) values[key] as? List<*> ?: throw wrong(key) else emptyList<Any?>()
        return entries.map { it as? String ?: throw wrong(key) }
    }

    /** All of it as texts. */
    fun texts(): Map<String, String> {
        val result = LinkedHashMap<String, String>()
        for (key in values.keys) result[key as String] = text(key)
        return result
    }

    fun sizes(key: String): List<Int> {
        val sizes = (values[key] as? List<*> ?: throw wrong(key)).map { it as? Long ?: throw wrong(key) }
        var count = 1L
        for (size in sizes) {
            if (size < 0 || size > Int.MAX_VALUE) throw wrong(key)
            count *= size
            if (count > Int.MAX_VALUE) throw wrong(key)
        }
        return sizes.map { it.toInt() }
    }

    fun <T> map(entry: (String, Fields) -> T): Map<String, T> {
        val result = LinkedHashMap<String, T>()
        for ((key, value) in values) result[key as String] = entry(key, Fields(value, "\"$key\" in $where"))
        return result
    }

    /** {"0": [1, 8]} as {0: 1..8}, for dimensions below [rank]. */
    fun ranges(rank: Int): Map<Int, IntRange> {
        val result = LinkedHashMap<Int, IntRange>()
        for (key in values.keys) {
            val dimension = (key as String).toIntOrNull()?.takeIf { it in 0 until rank } ?: throw wrong(key)
            val limits = sizes(key)
            if (limits.size != 2 || limits[0] > limits[1]) throw wrong(key)
            result[dimension] = limits[0]..limits[1]
        }
        return result
    }
}
