// Signatures of org.pytorch:executorch-android 1.4.1 that the runner uses; a program gives back what it is given.
package org.pytorch.executorch

import java.io.Closeable
import java.io.File

enum class DType { UINT8, INT64, FLOAT }

class Tensor private constructor(private val data: Any, private val type: DType) {
    val dataAsFloatArray: FloatArray get() = data as FloatArray

    fun dtype(): DType = type

    companion object {
        @JvmStatic fun fromBlob(data: FloatArray, shape: LongArray): Tensor = Tensor(data, DType.FLOAT)

        @JvmStatic fun fromBlob(data: LongArray, shape: LongArray): Tensor = Tensor(data, DType.INT64)

        @JvmStatic fun fromBlobUnsigned(data: ByteArray, shape: LongArray): Tensor = Tensor(data, DType.UINT8)
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
    open fun execute(methodName: String, vararg inputs: EValue): Array<EValue> = arrayOf(*inputs)

    open fun loadMethod(methodName: String) = Unit

    override fun close() = Unit

    companion object {
        const val LOAD_MODE_MMAP = 1

        /** Throws as the runtime does: what it is given has to be checked before. */
        @JvmStatic fun load(modelPath: String?, loadMode: Int = 0, numThreads: Int = 0): Module {
            if (File(modelPath!!).readBytes()[0] != 0.toByte()) throw RuntimeException("error 0x23")
            return Module()
        }
    }
}
