"""facenet-pytorch: the embedding network, and the three networks of MTCNN with the weights that the package ships."""
