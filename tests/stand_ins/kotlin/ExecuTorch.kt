// Signatures of org.pytorch:executorch-android 1.4.1 that the runner uses; a program gives back what it is given.
package org.pytorch.executorch

import java.io.Closeable
import java.io.File
import java.nio.Buffer
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer

enum class DType { UINT8, INT64, FLOAT }

class Tensor private constructor(private val data: Any, private val type: DType) {
    val dataAsFloatArray: FloatArray get() = data as FloatArray

    /** The buffer that it was made of, which it does not copy; null where it was made of an array. */
    val buffer: Buffer? get() = data as? Buffer

    fun dtype(): DType = type

    companion object {
        @JvmStatic fun fromBlob(data: FloatArray, shape: LongArray): Tensor = Tensor(data, DType.FLOAT)

        @JvmStatic fun fromBlob(data: LongArray, shape: LongArray): Tensor = Tensor(data, DType.INT64)

        @JvmStatic fun fromBlobUnsigned(data: ByteArray, shape: LongArray): Tensor = Tensor(data, DType.UINT8)

        @JvmStatic fun fromBlob(data: FloatBuffer, shape: LongArray): Tensor = of(data, data.order(), shape, DType.FLOAT)

        @JvmStatic fun fromBlob(data: LongBuffer, shape: LongArray): Tensor = of(data, data.order(), shape, DType.INT64)

        @JvmStatic fun fromBlobUnsigned(data: ByteBuffer, shape: LongArray): Tensor =
            of(data, data.order(), shape, DType.UINT8)

        /** Refuses what the runtime refuses. */
        private fun of(data: Buffer, order: ByteOrder, shape: LongArray, type: DType): Tensor {
            require(data.isDirect && order == ByteOrder.nativeOrder())
            require(data.capacity().toLong() == shape.fold(1L, Long::times))
            return Tensor(data, type)
        }
    }
}

class EValue private constructor(private val tensor: Tensor) {
    val isTensor: Boolean get() = true

    fun toTensor(): Tensor = tensor

    companion object {
        @JvmStatic fun from(tensor: Tensor): EValue = EValue(tensor)
    }
}

open class Module private constructor() : Closeable {
    open fun execute(methodName: String, vararg inputs: EValue): Array<EValue> {
        for (input in inputs) taken.add(input.toTensor())
        return arrayOf(*inputs)
    }

    open fun loadMethod(methodName: String) = Unit

    override fun close() = Unit

    companion object {
        const val LOAD_MODE_MMAP = 1

        /** What was taken at some run. */
        val taken = LinkedHashSet<Tensor>()

        /** Throws as the runtime does: what it is given has to be checked before. */
        @JvmStatic fun load(modelPath: String?, loadMode: Int = 0, numThreads: Int = 0): Module {
            if (File(modelPath!!).readBytes()[0] != 0.toByte()) throw RuntimeException("error 0x23")
            return Module()
        }
    }
}
