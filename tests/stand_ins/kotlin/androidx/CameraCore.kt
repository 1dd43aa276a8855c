// Signatures of androidx.camera:camera-core 1.5.1 that the app uses.
package androidx.camera.core

interface ImageInfo {
    val rotationDegrees: Int
}

interface ImageProxy : AutoCloseable {
    val width: Int
    val height: Int
    val imageInfo: ImageInfo

    fun toBitmap(): android.graphics.Bitmap

    override fun close()
}

class ImageAnalysis {
    fun interface Analyzer {
        fun analyze(image: ImageProxy)
    }
}
